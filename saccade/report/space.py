"""Where pictures lie in feature space: a flat map, nearest neighbors, and errors of a vote.

Features are the pooled vectors of evenly spread training pictures, scaled to unit length. An error
is a labelled picture whose NEIGHBORS nearest others vote for a wrong class (weights exp(cosine /
T), as in the protocol knn-dino, each picture left out of its own vote).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .. import weights
from ..data.source import Source, Subset
from ..engine import distributed
from ..engine.log import counter
from ..evals.features import extract, preprocess_for
from ..evals.knn import neighbors, vote

Projection = Literal["pca", "tsne"]
NEAR = 8  # neighbors of a picture on the page
NEIGHBORS, TEMPERATURE = 20, 0.07
ERRORS = 16
COMPONENTS = 50  # that t-SNE starts from


@dataclass(frozen=True, slots=True)
class Arm:
    """The same pictures as one network sees them."""

    name: str
    flat: Float[np.ndarray, "n 2"]  # 0..1, the same unit on both axes
    near: Int[np.ndarray, "n k"]  # points, nearest first
    cosine: Float[np.ndarray, "n k"]
    errors: list[Error]


@dataclass(frozen=True, slots=True)
class Error:
    point: int
    said: int  # class that the neighbors vote for
    share: float  # of the vote


@dataclass(frozen=True, slots=True)
class Space:
    index: Int[np.ndarray, "n"]  # of the pictures in their source
    names: list[str]
    labels: list[int] | None
    classes: tuple[str, ...]
    arms: list[Arm]


def spread(source: Source, most: int) -> Source:
    """At most that many pictures, evenly spread."""
    if len(source) <= most:
        return source
    return Subset(source, np.arange(most, dtype=np.int64) * len(source) // most)


def build(
    source: Source,
    networks: Sequence[tuple[str, Path]],
    *,
    projection: Projection,
    threads: int,
) -> Space:
    """The map of these pictures by each named network."""
    arms, index = [], np.empty(0, np.int64)
    for name, folder in networks:
        loaded = weights.load(folder)
        found = extract(
            loaded.backbone.to(distributed.device()),
            source,
            preprocess_for(loaded.backbone, loaded.normalize),
            threads=threads,
            progress=counter(f"features, {name}"),
        )
        index = found.index.numpy()
        arms.append(arm(name, found.x, found.y, len(source.classes), projection))
    return Space(
        index=index,
        names=[source.name(i) for i in index.tolist()],
        labels=None if source.labels is None else source.labels[index].tolist(),
        classes=source.classes,
        arms=arms,
    )


def arm(
    name: str,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    classes: int,
    projection: Projection,
) -> Arm:
    unit = F.normalize(x, dim=1)
    cosine, near = others(unit, min(NEAR, len(x) - 1))
    return Arm(
        name=name,
        flat=flattened(unit.cpu(), projection),
        near=near.cpu().numpy(),
        cosine=cosine.cpu().numpy(),
        errors=errors(unit, y, classes),
    )


def others(unit: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Cosine and row of the k nearest other rows, nearest first."""
    cosine, near = neighbors(unit, unit, min(k + 1, len(unit)))
    own = near == torch.arange(len(unit), device=near.device)[:, None]
    own[:, -1] |= ~own.any(1)  # copies of a picture may crowd it out of its own list
    rows = (len(unit), near.shape[1] - 1)
    return cosine[~own].reshape(rows), near[~own].reshape(rows)


def errors(unit: Float[Tensor, "n d"], y: Int[Tensor, "n"], classes: int) -> list[Error]:
    """The most confident wrong votes, surest first."""
    at = (y >= 0).nonzero()[:, 0]
    if len(at) < 3 or classes < 2:
        return []
    k = min(NEIGHBORS, len(at) - 1)
    votes = vote(others(unit[at], k), y[at], classes, k, TEMPERATURE)
    share, said = (votes / votes.sum(1, keepdim=True)).max(1)
    wrong = (said != y[at]).nonzero()[:, 0]
    order = wrong[share[wrong].argsort(descending=True, stable=True)][:ERRORS]
    return [Error(int(at[i]), int(said[i]), float(share[i])) for i in order.tolist()]


def flattened(unit: Float[Tensor, "n d"], projection: Projection) -> Float[np.ndarray, "n 2"]:
    """Two coordinates a row, in 0..1, the same unit on both axes."""
    xy = principal(unit, 2)
    if projection == "tsne" and len(unit) > 3:
        xy = _tsne(principal(unit, COMPONENTS))
    low = xy.min(0)
    span = max(float((xy.max(0) - low).max()), 1e-12)
    return (xy - low) / span + (1 - (xy.max(0) - low) / span) / 2


def principal(x: Float[Tensor, "n d"], k: int) -> Float[np.ndarray, "n _"]:
    """The first principal components, the largest weight of each positive."""
    centered = (x - x.mean(0)).double()
    _, axes = torch.linalg.eigh(centered.T @ centered)  # [D, D], smallest first
    axes = axes.flip(1)[:, :k]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    found = (centered @ (axes * largest.sign())).numpy()
    return np.pad(found, ((0, 0), (0, max(0, min(k, 2) - found.shape[1]))))


def _tsne(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ValueError(
            "setting map: tsne needs scikit-learn; pip install 'saccade[report]', or take --map pca"
        ) from None
    perplexity = min(30.0, (len(x) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(x)
