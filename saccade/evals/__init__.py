"""Evaluation protocols: named, versioned, and never a figure without its interval.

Importing this imports neither torch nor a protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features import Preprocess, extract, preprocess_for
    from .results import Result, gain, read_results, table, write_results
    from .run import evaluate, trivial

__all__ = [
    "BASELINES",
    "PROTOCOLS",
    "Preprocess",
    "Protocol",
    "Result",
    "evaluate",
    "extract",
    "gain",
    "names",
    "preprocess_for",
    "read_results",
    "summary",
    "table",
    "trivial",
    "write_results",
]


@dataclass(frozen=True, slots=True)
class Protocol:
    """Where a protocol stands, and which edition of it: figures of two versions never mix."""

    module: str
    version: int
    summary: str


PROTOCOLS = {
    "knn-dino": Protocol("knn", 1, "kNN, cosine, T .07, k 20 (also 10, 100, 200)"),
    "knn-lightly": Protocol("knn", 1, "kNN, cosine, T .1, k 200"),
    "linear-moco": Protocol("linear", 1, "linear on the pooled vector, SGD lr 30, 100 epochs"),
    "linear-dino": Protocol("linear", 1, "linear on the last 4 blocks' CLS, SGD, 100 epochs"),
    "linear-mae": Protocol("linear", 1, "batch norm and linear, LARS lr .1 x B/256, 90 epochs"),
}
BASELINES = {
    "chance": Protocol("baselines", 1, "the most frequent class"),
    "color-histogram": Protocol("baselines", 1, "10-NN of 8x8x8 color histograms"),
    "hog": Protocol("baselines", 1, "10-NN of histograms of oriented gradients"),
}
_LAZY = {
    "Preprocess": "features",
    "Result": "results",
    "evaluate": "run",
    "extract": "features",
    "gain": "results",
    "preprocess_for": "features",
    "read_results": "results",
    "table": "results",
    "trivial": "run",
    "write_results": "results",
}


def names() -> list[str]:
    """Protocols that `evaluate` knows."""
    return list(PROTOCOLS)


def summary(name: str) -> str:
    """What a protocol or baseline measures, in one line."""
    return (PROTOCOLS | BASELINES)[name].summary


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
