"""Evaluation protocols: named, versioned, and never a figure without its interval.

Importing this imports neither torch nor a protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import Comparison, compare
    from .features import Preprocess, extract, preprocess_for
    from .results import Result, gain, read_results, table, write_results
    from .run import evaluate, trivial

__all__ = [
    "BASELINES",
    "PROTOCOLS",
    "Comparison",
    "Preprocess",
    "Protocol",
    "Result",
    "compare",
    "evaluate",
    "extract",
    "gain",
    "names",
    "needs_labels",
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
    labels: bool = True  # it needs them
    epochs: bool = False  # those of its training can be set


PROTOCOLS = {
    "knn-dino": Protocol("knn", 1, "kNN, cosine, T .07, k 20 (also 10, 100, 200)"),
    "knn-lightly": Protocol("knn", 1, "kNN, cosine, T .1, k 200"),
    "linear-moco": Protocol("linear", 1, "linear on the pooled vector, SGD lr 30, 100 epochs"),
    "linear-dino": Protocol("linear", 1, "linear on the last 4 blocks' CLS, SGD, 100 epochs"),
    "linear-mae": Protocol("linear", 1, "batch norm and linear, LARS lr .1 x B/256, 90 epochs"),
    "linear-mae-crops": Protocol(
        "linear", 1, "the same on random crops and flips, as published", epochs=True
    ),
    "linear-simclr": Protocol(
        "linear", 1, "linear on the pooled vector, SGD .1 x B/256, 90 epochs"
    ),
    "linear-dinov2": Protocol(
        "grid", 1, "52 linear classifiers: 13 learning rates x 4 inputs", epochs=True
    ),
    "attentive-cae": Protocol(
        "attentive",
        1,
        "one query attends to frozen tokens, SGD .4 x B/8192, 90 epochs",
        epochs=True,
    ),
    "linear-igpt": Protocol(
        "layers", 1, "logistic regression on the best layer of an iGPT, and all"
    ),
    "logistic": Protocol("logistic", 1, "logistic regression at its optimum, L-BFGS, C 1"),
    "few-shot": Protocol("few_shot", 1, "5-way episodes; 1, 5 and 10 labels a class"),
    "retrieval": Protocol("retrieval", 1, "mean average precision among the training pictures"),
    "multi-label": Protocol("logistic", 1, "mean average precision; classes named like cat|dog"),
    "semi-1": Protocol("finetune", 1, "fine-tuning on 1 % of the labels, 20 epochs", epochs=True),
    "semi-10": Protocol("finetune", 1, "fine-tuning on 10 % of the labels, 20 epochs", epochs=True),
    "finetune-mae": Protocol(
        "finetune", 2, "fine-tuning, layer decay .65, 100 epochs", epochs=True
    ),
    "finetune-mae-l": Protocol(
        "finetune", 2, "the same for ViT-L: layer decay .75, 50 epochs", epochs=True
    ),
    "finetune-mae-h": Protocol(
        "finetune", 2, "the same for ViT-H: drop path .3 instead of .2", epochs=True
    ),
    "finetune-igpt": Protocol(
        "joint", 1, "fine-tuning of an iGPT that goes on naming colors, 20 epochs", epochs=True
    ),
    "finetune-dino": Protocol("finetune", 2, "fine-tuning as DeiT, 300 epochs", epochs=True),
    "finetune-moco": Protocol("finetune", 2, "fine-tuning as MoCo v3, 150 epochs", epochs=True),
    "label-free": Protocol(
        "label_free", 1, "RankMe, alpha-ReQ, uniformity, LiDAR, alignment", labels=False
    ),
}
BASELINES = {
    "chance": Protocol("baselines", 1, "the most frequent class"),
    "color-histogram": Protocol("baselines", 1, "10-NN of 8x8x8 color histograms"),
    "hog": Protocol("baselines", 1, "10-NN of histograms of oriented gradients"),
}
_LAZY = {
    "Comparison": "comparison",
    "Preprocess": "features",
    "Result": "results",
    "compare": "comparison",
    "evaluate": "run",
    "extract": "features",
    "gain": "results",
    "preprocess_for": "features",
    "read_results": "results",
    "table": "results",
    "trivial": "run",
    "write_results": "results",
}


def needs_labels(protocols: Iterable[str]) -> bool:
    """Whether any of these protocols counts right answers."""
    return any(PROTOCOLS[name].labels for name in protocols)


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
