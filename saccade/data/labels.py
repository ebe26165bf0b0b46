"""Which labels train: all, a balanced part, or those of a list, given and guessed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from ..core import Labels
from .balanced import balanced
from .source import Source, Subset


@dataclass(frozen=True, slots=True)
class Label:
    """A line of a list."""

    picture: str
    name: str  # of the class
    confidence: float  # of a guess, below 1; 1: the label was given


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pictures that train, with the labels they train by."""

    source: Source
    weights: Float32[np.ndarray, "m"]  # how much each counts
    guesses: int  # of the labels


def chosen(source: Source, labels: Labels, seed: int) -> Chosen:
    """What the settings ask for of a source whose pictures all have labels."""
    given = [k for k, used in _ways(labels).items() if used]
    if len(given) > 1:
        raise ValueError(f"settings {', '.join(given)} exclude each other; give one")
    if labels.file:
        return _listed(source, labels)
    if labels.ratio != 1 or labels.weighted:
        raise ValueError(
            "settings labels.ratio and labels.weighted are about guesses; give labels.file"
        )
    assert source.labels is not None
    rows = picked(source.labels, labels, seed)
    kept = source if len(rows) == len(source) else Subset(source, rows)
    return Chosen(kept, np.ones(len(rows), np.float32), 0)


def picked(labels: Int64[np.ndarray, "n"], wanted: Labels, seed: int) -> Int64[np.ndarray, "m"]:
    """Rows of a number or a share of the labels, as many of every class; all by default."""
    if wanted.count:
        classes = max(len(np.unique(labels[labels >= 0])), 1)
        if wanted.count < classes:
            raise ValueError(
                f"setting labels.count={wanted.count}: there are {classes} classes; "
                "choose one label of each or more"
            )
        return balanced(labels, wanted.count // classes, seed=seed)
    if wanted.share < 1:
        return balanced(labels, share=wanted.share, seed=seed)
    return np.flatnonzero(labels >= 0)


def read_labels(path: Path) -> list[Label]:
    """Picture, class and, of a guess, its confidence in each line, with tabs between them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"setting labels.file: {path}: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        try:
            found.append(Label(parts[0], parts[1], float(parts[2]) if len(parts) > 2 else 1.0))
        except (IndexError, ValueError):
            raise ValueError(
                f"setting labels.file: line {number} of {path} is no picture, class and "
                "perhaps confidence, with tabs between them"
            ) from None
    return found


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """What `read_labels` reads; the file appears whole."""
    lines = [
        f"{one.picture}\t{one.name}" + (f"\t{one.confidence:.6f}\n" if one.confidence < 1 else "\n")
        for one in labels
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text("".join(lines), encoding="utf-8")
    os.replace(beside, path)


def _ways(labels: Labels) -> dict[str, bool]:
    return {
        "labels.count": labels.count > 0,
        "labels.share": labels.share != 1,
        "labels.file": bool(labels.file),
    }


def _listed(source: Source, labels: Labels) -> Chosen:
    """The given labels of a list, and the surest of its guesses."""
    if not 0 <= labels.ratio <= 1:
        raise ValueError(f"setting labels.ratio={labels.ratio} is not within 0..1")
    found = read_labels(Path(labels.file))
    sure = [one for one in found if one.confidence == 1]
    guesses = sorted((one for one in found if one.confidence < 1), key=lambda x: -x.confidence)
    used = sure + guesses[: round(labels.ratio * len(guesses))]
    at = {source.name(i): i for i in range(len(source))}
    number = {name: k for k, name in enumerate(source.classes)}
    for one in used:
        if one.picture not in at or one.name not in number:
            what = one.picture if one.picture not in at else f"class {one.name!r}"
            raise ValueError(f"setting labels.file: {what} of {labels.file} is not in the data")
    if not used:
        raise ValueError(f"setting labels.file: {labels.file} has no label that trains")
    part = Subset(source, np.array([at[one.picture] for one in used], np.int64))
    part.labels = np.array([number[one.name] for one in used], np.int64)
    counts = [one.confidence if labels.weighted else 1.0 for one in used]
    return Chosen(part, np.array(counts, np.float32), len(used) - len(sure))
