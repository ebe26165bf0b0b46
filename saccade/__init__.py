"""Saccade learns to see without labels: a folder of pictures in, a vision backbone out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import embed, evaluate, export, load, predict, pretrain, train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "embed",
    "evaluate",
    "export",
    "load",
    "predict",
    "pretrain",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
