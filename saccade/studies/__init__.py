"""Claims of the literature, each a table of runs small enough for a CPU. No torch here.

A study is a file of this folder with a value `STUDY`; users write its name with hyphens.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from ..config import suggest


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the paper's table, as a pretraining run."""

    name: str
    method: str
    published: float | None = None  # the paper's figure, a fraction of 1
    backbone: str = "resnet10_w32"
    batch_size: int = 128
    sets: tuple[str, ...] = ()  # over the study's common ones


@dataclass(frozen=True, kw_only=True)
class Study:
    claim: str
    source: str  # paper and table
    figure: str  # what the published numbers are
    arms: tuple[Arm, ...]
    order: tuple[tuple[str, str], ...]  # better and worse arm, as the paper has them
    common: tuple[str, ...] = ()
    protocol: str = "knn-dino"
    seen: int = 100_000  # pictures seen in training, the same for every arm
    pictures: int = 20_000  # to train on, and the bank or training set of the protocol


# A small ResNet that learns within minutes.
RESNET = ("backbone.stem=paper", "optim.schedule.warmup_epochs=0.2", "engine.log_every=50")
SGD = ("optim.name=sgd", "optim.lr=0.12", "optim.lr_rule=none", "optim.weight_decay=0.0005")
GENTLE = "method.views.0.crop=[0.2,1.0]"  # crops, of few steps


def names() -> list[str]:
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))


def get(name: str) -> Study:
    if name not in names():
        raise ValueError(f"setting study: {name!r} is unknown{suggest(name, names())}")
    return importlib.import_module(f".{name.replace('-', '_')}", __name__).STUDY


def summary(name: str) -> str:
    return get(name).claim
