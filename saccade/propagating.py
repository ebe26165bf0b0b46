"""What `saccade propagate` does: features, a few labels, and a list of labels for all pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from . import weights
from .config import to_dict
from .core import Labels
from .data.labels import Label, chosen, write_labels
from .data.source import Source, open_source
from .engine import distributed
from .engine.log import counter
from .evals.features import extract, preprocess_for
from .evals.interval import Interval, bootstrap, weighted_bootstrap
from .evals.results import Result, pack
from .evals.run import fingerprint, labeled
from .nn import propagation

ALGORITHMS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "cut": propagation.cut,
    "vote": propagation.vote,
}
PROTOCOL = "propagate/1"
SUREST = 0.2  # of the guesses, whose share of right ones is told too
MOST = 1 - 1e-6  # confidence of a guess: 1 is a given label


@dataclass(frozen=True, kw_only=True)
class Request:
    """Whose features, which labels, and how."""

    weights: str
    data: str
    labels: Labels = field(default_factory=Labels)
    algorithm: Literal["cut", "vote"] = "cut"
    limit: int = 0  # training pictures
    seed: int = 0
    workers: int = 2


def propagate(request: Request, out: Path) -> list[Result]:
    """Write the given labels and the guessed ones into `out`; how many guesses are right, where
    the data knows."""
    loaded = weights.load(request.weights)
    source = open_source(
        request.data, split="train", channels=loaded.config.channels, limit=request.limit
    )
    few = chosen(labeled(source, "data"), request.labels, request.seed).source
    if len(few) == len(source):
        raise ValueError("setting labels: every picture has one; give a number with --labels")
    found = extract(
        loaded.backbone.to(distributed.device()),
        source,
        preprocess_for(loaded.backbone, loaded.normalize),
        threads=request.workers,
        progress=counter("features"),
    )
    known = _known(source, few, found.index)
    spread = ALGORITHMS[request.algorithm]
    guess, confidence = spread(F.normalize(found.x, dim=1), known, classes=len(source.classes))
    guess, confidence = guess.cpu(), confidence.cpu().double().clamp(0, MOST)
    write_labels(out, _lines(source, found.index, known, guess, confidence))
    unseen = (known < 0) & (found.y.cpu() >= 0)
    hits = (guess == found.y.cpu())[unseen].numpy()
    settings = to_dict(request) | {"given": int((known >= 0).sum()), "test": fingerprint(source)}
    return list(_figures(hits, confidence[unseen].numpy(), settings)) if len(hits) else []


def _known(source: Source, few: Source, index: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The labels that are given, -1 for others, of the pictures that could be read."""
    assert few.labels is not None
    number = {few.name(i): int(label) for i, label in enumerate(few.labels)}
    return torch.tensor([number.get(source.name(int(i)), -1) for i in index])


def _lines(
    source: Source,
    index: Int[Tensor, "n"],
    known: Int[Tensor, "n"],
    guess: Int[Tensor, "n"],
    confidence: Float[Tensor, "n"],
) -> list[Label]:
    """Given labels in the order of the data, then guesses, the surest first."""
    sure = (known >= 0).nonzero()[:, 0]
    rest = (known < 0).nonzero()[:, 0]
    rest = rest[confidence[rest].argsort(descending=True, stable=True)]
    return [
        *(Label(source.name(int(index[i])), source.classes[known[i]], 1.0) for i in sure),
        *(
            Label(source.name(int(index[i])), source.classes[guess[i]], float(confidence[i]))
            for i in rest
        ),
    ]


def _figures(
    hits: Bool[np.ndarray, "n"], confidence: Float64[np.ndarray, "n"], settings: dict[str, Any]
) -> list[Result]:
    """Right guesses, right ones among the surest, and how well confidence tells them apart."""
    order = np.argsort(-confidence, kind="stable")
    surest = hits[order[: max(1, round(SUREST * len(hits)))]]
    seed = settings["seed"]
    rows: list[tuple[str, Interval, np.ndarray]] = [
        ("top1", bootstrap(hits, seed), hits),
        (f"top1, surest {SUREST:.0%}", bootstrap(surest, seed), surest),
    ]
    if 0 < hits.sum() < len(hits):
        told = weighted_bootstrap(lambda w: auc(hits, confidence, w), len(hits), seed=seed)
        rows.append(("AUC of confidence", told, hits))
    return [
        Result(
            model=settings["weights"],
            protocol=PROTOCOL,
            metric=metric,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=len(values),
            settings=settings,
            hits=pack(values) if metric == "top1" else "",
        )
        for metric, interval, values in rows
    ]


def auc(
    hits: Bool[np.ndarray, "n"],
    confidence: Float64[np.ndarray, "n"],
    weight: Float[np.ndarray, "n"],
) -> float:
    """Chance that a right guess is surer than a wrong one; equally sure counts half."""
    level = np.unique(confidence, return_inverse=True)[1]
    right, wrong = (np.bincount(level, weight * side) for side in (hits, ~hits))
    below = np.cumsum(wrong) - wrong
    pairs = right.sum() * wrong.sum()
    return float((right * (below + wrong / 2)).sum() / pairs) if pairs else float("nan")
