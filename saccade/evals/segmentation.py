"""Mean intersection over union and its kin, from one confusion matrix over the data set.

    IoU of a class = right / (truth + seen - right), counted in pixels of all pictures
Pixels without a class count nowhere. A class that is neither there nor seen has no IoU and is left
out of the mean; one that is only seen has 0. Intervals: bootstrap over pictures, each of which
brings its own counts; pictures of one video are more alike than it assumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped, UInt8

from ..core import IGNORED
from .interval import LEVEL
from .results import Result

DRAWS = 1000  # of the bootstrap
PROTOCOL = "segmentation/1"

Labels = UInt8[np.ndarray, "h w"]


def confusion(truth: Labels, seen: Labels, classes: int) -> Int64[np.ndarray, "k k"]:
    """Pixels by their class (rows) and by what was seen in them (columns)."""
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * classes + seen[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def counted(truth: Labels, seen: Labels, classes: int) -> Int64[np.ndarray, "3 k"]:
    """Of each class the pixels seen right, those there, and those seen."""
    table = confusion(truth, seen, classes)
    return np.stack([table.diagonal(), table.sum(1), table.sum(0)])


def evaluate(
    pictures: Sequence[Int64[np.ndarray, "3 k"]],
    classes: Sequence[str],
    *,
    model: str,
    settings: dict[str, Any],
    seed: int = 0,
) -> list[Result]:
    """All figures of a test set, from what was counted in each picture."""
    counts = np.array(pictures, dtype=np.float64).swapaxes(0, 1)  # [3, n, K]
    n = counts.shape[1]
    if not counts.sum():
        raise ValueError("setting eval-data: no pixel of its masks has a class")
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
    weights = np.concatenate([np.ones((1, n)), times])  # [1 + draws, n], first as they are
    found = figures(weights @ counts, classes)
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    absent = [c for c in classes if np.isnan(found[f"IoU {c}"][0])]
    settings = {**settings, "classes": len(classes), "absent": absent, "seed": seed, "draws": DRAWS}
    results = []
    for metric, (value, *drawn) in found.items():
        if np.isnan(value):
            continue
        low, high = np.nanquantile(drawn, ends)
        results.append(
            Result(
                model=model,
                protocol=PROTOCOL,
                metric=metric,
                value=float(value),
                low=float(low),
                high=float(high),
                n=n,
                settings=settings,
            )
        )
    return results


def figures(
    counts: Float64[np.ndarray, "3 d k"], classes: Sequence[str]
) -> dict[str, Float64[np.ndarray, "d"]]:
    """Figures of the pixels seen right, there, and seen; nan where there is nothing to count."""
    right, truth, seen = counts
    iou = _share(right, truth + seen - right)
    found = {
        "mIoU": _mean(iou),
        "pixel accuracy": _share(right.sum(-1), truth.sum(-1)),
        "class accuracy": _mean(_share(right, truth)),
    }
    return found | {f"IoU {name}": iou[..., k] for k, name in enumerate(classes)}


def _share(
    part: Float64[np.ndarray, "*any"], whole: Shaped[np.ndarray, "*any"]
) -> Float64[np.ndarray, "*any"]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(shares: Float64[np.ndarray, "d k"]) -> Float64[np.ndarray, "d"]:
    """Over the classes that have one."""
    known = ~np.isnan(shares)
    return _share(np.where(known, shares, 0.0).sum(-1), known.sum(-1))
