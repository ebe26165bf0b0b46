"""Class-balanced subsets of labels, the same for everybody: few-label figures name what they saw.

A subset depends on the labels, its size and the seed alone, by arithmetic on integers: no library's
generator takes part. The pictures of a smaller subset stand in every larger one of the same seed.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ..nn.random import permutation
from .source import Source


def balanced(
    labels: Int64[np.ndarray, "n"], each: int | None = None, *, share: float = 1.0, seed: int = 0
) -> Int64[np.ndarray, "m"]:
    """Rows of `each` pictures of every class, or of the share of all spread evenly over classes.

    A class that has fewer gives all it has; a share gives each class at least one picture.
    Entries without a label take no part. Rows come in the order of the data.
    """
    classes = np.unique(labels[labels >= 0])
    if each is None:
        if not 0 < share <= 1:
            raise ValueError(f"share={share} is no part of the labels; choose above 0, up to 1")
        each = max(1, round(share * int((labels >= 0).sum()) / max(len(classes), 1)))
    if each < 1:
        raise ValueError(f"each={each} is no number of pictures; choose 1 or more")
    chosen = [np.empty(0, dtype=np.int64)]
    for c in classes.tolist():
        rows = np.flatnonzero(labels == c)
        chosen.append(rows[permutation(len(rows), seed, c).numpy()[:each]])
    return np.sort(np.concatenate(chosen))


def write_list(path: Path, source: Source, rows: Int64[np.ndarray, "m"]) -> None:
    """One line a picture: its name in the source, a tab, its class; the file appears whole."""
    assert source.labels is not None
    lines = [f"{source.name(int(i))}\t{source.classes[source.labels[i]]}\n" for i in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text("".join(lines))
    os.replace(beside, path)
