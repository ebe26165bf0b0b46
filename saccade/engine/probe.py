"""Online kNN: how a run's features classify, where labels exist, without touching training."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Backbone
from ..data.plain import pictures
from ..data.source import Source
from ..nn.functional import knn_scores
from ..recipe import Normalize

BANK, QUERIES = 4000, 1000  # pictures at most
NEIGHBORS, TEMPERATURE = 20, 0.07


class OnlineKnn:
    """kNN top-1 accuracy (k 20, T .07) on a fixed subset of the pictures."""

    def __init__(
        self,
        bank: Source,
        queries: Source,
        size: int,
        normalize: Normalize,
        *,
        batch_size: int,
        threads: int,
    ) -> None:
        own = _numbers(bank.classes, queries.classes)
        self.sets = [
            (bank, _spread(bank, BANK), np.arange(len(bank.classes))),
            (queries, _spread(queries, QUERIES), own),
        ]
        self.size, self.normalize = size, normalize
        self.batch_size, self.threads = batch_size, threads

    @torch.no_grad()
    def __call__(self, backbone: Backbone) -> float:
        training = backbone.training
        backbone.eval()
        (bank, labels), (query, truth) = (self._features(backbone, *s) for s in self.sets)
        backbone.train(training)
        classes = int(max(labels.max(), truth.max())) + 1
        k = min(NEIGHBORS, len(bank))
        votes = knn_scores(query, bank, labels, classes=classes, k=k, temperature=TEMPERATURE)
        return (votes.argmax(1) == truth).float().mean().item()

    def _features(
        self, backbone: Backbone, source: Source, indices: np.ndarray, numbers: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        device = next(backbone.parameters()).device
        resize = self.size if self.size <= 64 else round(self.size * 256 / 224)
        vectors, rows = [], []
        for x, index in pictures(
            source,
            size=self.size,
            resize=resize,
            interpolation="bicubic",
            normalize=self.normalize,
            batch_size=self.batch_size,
            threads=self.threads,
            indices=indices.tolist(),
        ):
            vectors.append(F.normalize(backbone(x.to(device)).float(), dim=-1).cpu())
            rows.append(index)
        assert source.labels is not None
        return torch.cat(vectors), torch.from_numpy(numbers[source.labels[torch.cat(rows).numpy()]])


def _spread(source: Source, most: int) -> np.ndarray:
    """At most `most` labelled pictures, evenly spaced."""
    assert source.labels is not None
    rows = np.flatnonzero(source.labels >= 0)
    n = len(rows)
    return rows[np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))]


def _numbers(train: tuple[str, ...], test: tuple[str, ...]) -> np.ndarray:
    """For each class of the test pictures its number among the training classes."""
    if strange := sorted(set(test) - set(train)):
        raise ValueError(
            f"setting eval_data: class {strange[0]!r} is not among the classes of data; "
            "give both the same class names"
        )
    return np.array([train.index(name) for name in test])
