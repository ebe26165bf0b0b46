"""Classes of pictures, learned from a teacher's answers: as classification, but for the labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import run as runs
from ..core import System
from ..data.augment import normalizer
from ..data.bad import Bad
from ..data.balanced import write_list
from ..data.labels import chosen
from ..data.source import Source, Split, Subset
from ..evals.features import translate
from ..evals.run import labeled
from ..recipe import Normalize
from ..run import TrainRun
from ..trained import load
from .classification import (
    LISTED,
    LessonLoader,
    check_head,
    evaluate,
    keep,
    later_bad,
    open_train,
    predict,
    test_data,
    view_loader,
)

__all__ = ["evaluate", "later_bad", "predict"]

TEACHERS = ("classification", "distillation")  # domains whose systems answer with probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The pictures that train, labeled in the teacher's classes where labels count, else -1."""

    source: Source
    bad: list[Bad]


def open_data(run: TrainRun, split: Split) -> Given | Source | None:
    if split == "test":
        return test_data(run)
    check_head(run)
    source = open_train(run)
    part = Subset(source, np.arange(len(source)))
    part.classes, part.labels = teacher_of(run).system.classes, np.full(len(source), -1, np.int64)
    if run.system.alpha < 1:
        known = chosen(labeled(source, "data"), run.system.labels, run.seed).source
        own = translate(part.classes, known.classes).numpy()
        number = {known.name(i): own[label] for i, label in enumerate(known.labels)}  # type: ignore[arg-type]
        part.labels = np.array([number.get(part.name(i), -1) for i in range(len(part))], np.int64)
    kept, bad = keep(run, part)
    return Given(source=kept, bad=bad)


def fitted(run: TrainRun, data: Given) -> TrainRun:
    return replace(run, system=replace(run.system, classes=teacher_of(run).system.classes))


def teacher_of(run: TrainRun) -> TrainRun:
    """The run of the teacher."""
    if not run.system.teacher:
        raise ValueError(
            "setting system.teacher is missing; give the folder of a trained classify run"
        )
    return runs.read_train(Path(run.system.teacher) / runs.FILE)


def summary(data: Given) -> str:
    count = len(_with_labels(data.source))
    labels = f", of which {count} labels count" if count else ", no labels"
    return f"{len(data.source)} pictures{labels}"


def bad(data: Given) -> list[Bad]:
    return data.bad


def record(run: TrainRun, data: Given, out: Path) -> None:
    """A list of the pictures whose labels count, if any."""
    rows = _with_labels(data.source)
    if len(rows):
        write_list(out / LISTED, data.source, rows)


def loader(run: TrainRun, data: Given, device: torch.device) -> LessonLoader:
    before, teacher = load(Path(run.system.teacher))
    if teacher.domain not in TEACHERS:
        raise ValueError(
            f"setting system.teacher: {run.system.teacher} is a run of {before.name}, which names "
            "no classes of pictures; give one of classify"
        )
    answer = Teacher(teacher.requires_grad_(False).to(device), run.normalize, before.normalize)
    return LessonLoader(view_loader(run, data.source, device), torch.ones(len(data.source)), answer)


class Teacher:
    """A trained system in front of pictures that were normalized for its student."""

    def __init__(self, system: System, student: Normalize, own: Normalize) -> None:
        self.system, self.student, self.own = system, student, own

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        if self.student != self.own:
            (mean, inverse), (mine, scale) = (
                normalizer(n, x.device) for n in (self.student, self.own)
            )
            x = (x / inverse + mean - mine) * scale
        return self.system.predict(x)


def _with_labels(source: Source) -> np.ndarray:
    assert source.labels is not None
    return np.flatnonzero(source.labels >= 0)
