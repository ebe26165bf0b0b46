"""Claims of the literature, each a table of runs small enough for a CPU. No torch here.

A study is a file of this folder with a value `STUDY`; users write its name with hyphens.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Literal

from ..config import suggest

Measure = Literal["accuracy", "system", "degeneracy", "growth"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the paper's table: a network pretrained, trained with labels, or both.

    Of a study of growth it is a mechanism of `saccade bench attention`, and nothing is trained.
    """

    name: str
    method: str = ""  # pretrains without labels; empty: random weights
    system: str = ""  # trains with labels, from what the method left
    published: float | None = None  # the paper's figure, a fraction of 1 where that is one
    backbone: str = "resnet10_w32"
    batch_size: int = 128  # of pretraining, or of the system where nothing is pretrained
    pictures: int = 0  # 0: as many as the study's
    sets: tuple[str, ...] = ()  # of the method, over the study's common ones
    system_sets: tuple[str, ...] = ()
    metric: str = ""  # empty: the study's
    shared: str = ""  # the arm whose runs are this one's too
    mechanism: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    claim: str
    source: str  # paper and table
    figure: str  # what the published numbers are
    arms: tuple[Arm, ...]
    order: tuple[tuple[str, str], ...]  # larger and smaller arm, as the paper has them
    recipe: str = "small"  # of methods and of systems
    common: tuple[str, ...] = ()  # of methods
    system_common: tuple[str, ...] = ()
    measure: Measure = "accuracy"  # of the encoder, by the protocol; or what a system reaches, ...
    protocol: str = "knn-dino"
    metric: str = ""  # empty: the protocol's first
    seen: int = 100_000  # pictures seen in a training, the same for every arm
    system_seen: int = 0  # by a system after pretraining; 0: as many
    pictures: int = 20_000  # to train on, and the bank or training set of the protocol

    @property
    def unit(self) -> float:
        """What figures are multiplied by to be shown: 100 where they are fractions."""
        return 1.0 if self.measure == "growth" else 100.0


# A small ResNet that learns within minutes.
RESNET = ("backbone.stem=paper", "optim.schedule.warmup_epochs=0.2", "engine.log_every=50")
SGD = ("optim.name=sgd", "optim.lr=0.12", "optim.lr_rule=none", "optim.weight_decay=0.0005")
ADAM = (  # learns in fewer steps than SGD, above all behind a queue
    *("optim.name=adamw", "optim.lr=0.002", "optim.lr_rule=none"),
    *("optim.weight_decay=0.01", "optim.decay_1d=false"),
)
GENTLE = "method.views.0.crop=[0.2,1.0]"  # crops, of few steps
SUPERVISED = (  # of small networks with labels
    *("optim.name=sgd", "optim.lr=0.05", "optim.lr_rule=none", "optim.weight_decay=0.0005"),
    *("optim.schedule.warmup_epochs=0", "optim.schedule.warmup_steps=70", "engine.log_every=50"),
)
TINY_SCENES = (  # of detectors: pictures of 128 pixels
    *("system.framing.short=[112,120,128,136,144]", "system.framing.test_short=128"),
    *("system.framing.longest=216", "system.anchors=[10,20,40,80,160]"),
    *("backbone.stem=paper", "engine.log_every=50"),
)


def names() -> list[str]:
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))


def get(name: str) -> Study:
    if name not in names():
        raise ValueError(f"setting study: {name!r} is unknown{suggest(name, names())}")
    return importlib.import_module(f".{name.replace('-', '_')}", __name__).STUDY


def summary(name: str) -> str:
    return get(name).claim
