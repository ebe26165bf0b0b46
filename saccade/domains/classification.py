"""Classes of pictures: systems that take `Lessons` and give a probability for every class."""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import safe_open
from torch import Tensor

from ..config import to_dict
from ..core import Augment, Lessons, System, View
from ..data.bad import Bad
from ..data.balanced import write_list
from ..data.labels import chosen
from ..data.loader import ViewLoader
from ..data.memory import Memory, in_memory
from ..data.source import Source, Split, open_source
from ..engine.log import counter
from ..evals.features import batches, check_any, evaluating, preprocess_for, translate
from ..evals.interval import bootstrap
from ..evals.results import Result, pack, write_json
from ..evals.run import fingerprint, labeled
from ..nn import dist
from ..run import HEADS, TrainRun
from .detection import opened

PROTOCOL = "classify/1"
TEST_BATCH = 256  # pictures
BEST = 5  # classes that predictions name
LISTED = "labels.txt"  # in the run folder: the pictures that trained and their classes

Teacher = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b k"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The pictures that train, with their labels."""

    source: Source
    weights: Float32[np.ndarray, "n"]  # how much each label counts
    guesses: int  # of the labels
    classes: tuple[str, ...]
    partial: bool  # the data has more labels
    bad: list[Bad]


class LessonLoader:
    """Batches of one view of every picture, with labels, weights and a teacher's answers."""

    def __init__(
        self, views: ViewLoader, weights: Float[Tensor, "n"], teacher: Teacher | None = None
    ) -> None:
        self.views, self.weights, self.teacher = views, weights, teacher

    @property
    def steps(self) -> int:
        return self.views.steps

    @property
    def wait(self) -> float:
        return self.views.wait

    def batches(self, epoch: int, start: int = 0) -> Generator[Lessons]:
        stream = self.views.batches(epoch, start)
        try:
            for batch in stream:
                x, index = batch.images[0], batch.index
                labels = torch.full_like(index, -1) if batch.labels is None else batch.labels
                yield Lessons(
                    images=x,
                    labels=labels,
                    weights=self.weights.to(x.device)[index],
                    taught=None if self.teacher is None else self.teacher(x),
                )
        finally:
            stream.close()


def open_data(run: TrainRun, split: Split) -> Given | Source | None:
    if split == "test":
        return test_data(run)
    check_head(run)
    source = labeled(open_train(run), "data")
    picked = chosen(source, run.system.labels, run.seed)
    kept, bad = keep(run, picked.source)
    rows = kept.rows if isinstance(kept, Memory) else slice(None)  # the others cannot be read
    return Given(
        source=kept,
        weights=picked.weights[rows],
        guesses=picked.guesses,
        classes=source.classes,
        partial=len(picked.source) < len(source),
        bad=bad,
    )


def open_train(run: TrainRun) -> Source:
    return open_source(run.data, split="train", channels=run.backbone.channels)


def keep(run: TrainRun, source: Source) -> tuple[Source, list[Bad]]:
    """The readable pictures, in memory as far as they fit."""
    budget = int(run.engine.memory_gb * 2**30)
    return in_memory(source, budget=budget, threads=run.engine.workers)


def check_head(run: TrainRun) -> None:
    """Raise ValueError where weights do not have as many layers of a head as the system keeps."""
    wanted = run.system.head_layers
    if not run.weights or not wanted:
        return
    path, kept = Path(run.weights) / HEADS, 0
    if path.is_file():
        with safe_open(path, "pt") as layers:
            shapes = {k: layers.get_slice(k).get_shape() for k in layers.keys()}  # noqa: SIM118
        kept = sum(k.startswith("projector.") and len(s) == 2 for k, s in shapes.items())
    if kept < wanted:
        raise ValueError(
            f"setting system.head_layers={wanted}: {run.weights} keeps {kept} layers of a head; "
            "choose at most that, or weights of a simclr_v2 run"
        )


def test_data(run: TrainRun) -> Source | None:
    """Labeled test pictures, whose classes were trained; none where the data has no such split."""
    channels = run.backbone.channels
    if run.eval_data:
        source = open_source(run.eval_data, split="test", channels=channels)
    else:
        try:
            source = open_source(run.data, split="test", channels=channels)
        except ValueError:  # most folders have no test split: then there is nothing to measure on
            return None
        if source.split != "test" or source.labels is None:
            return None
    source = labeled(source, "eval-data")
    translate(run.system.classes, source.classes)
    return source


def fitted(run: TrainRun, data: Given) -> TrainRun:
    if run.system.classes not in ((), data.classes):
        raise ValueError(
            f"setting system.classes: {list(run.system.classes)} are not the data's "
            f"{list(data.classes)}; leave them out"
        )
    return replace(run, system=replace(run.system, classes=data.classes))


def summary(data: Given) -> str:
    guessed = f", {data.guesses} of them guessed," if data.guesses else ""
    return f"{len(data.source)} labels{guessed} of {len(data.classes)} classes"


def bad(data: Given) -> list[Bad]:
    return data.bad


def record(run: TrainRun, data: Given, out: Path) -> None:
    """A list of the pictures that train, where they are a part: `labels.file` reads it."""
    if data.partial:
        write_list(out / LISTED, data.source, np.arange(len(data.source)))


def loader(run: TrainRun, data: Given, device: torch.device) -> LessonLoader:
    views = view_loader(run, data.source, device)
    return LessonLoader(views, torch.from_numpy(data.weights))


def view_loader(run: TrainRun, source: Source, device: torch.device) -> ViewLoader:
    return ViewLoader(
        source,
        (view(run.system.augment, run.backbone.image_size),),
        run.normalize,
        batch_size=run.batch_size,
        seed=run.seed,
        rank=dist.rank(),
        world=dist.world(),
        threads=run.engine.workers,
        device=device,
    )


def view(augment: Augment, size: int) -> View:
    """One row of augmentations at a size in pixels."""
    return View(
        size=size,
        crop=augment.crop,
        interpolation="bicubic",
        flip=augment.flip,
        jitter=1.0 if any(augment.strength) else 0.0,
        strength=augment.strength,
        grayscale=0.0,
        blur=0.0,
        strong=augment.strong,
    )


def later_bad(loader: LessonLoader) -> list[Bad]:
    views = loader.views
    return [Bad(views.source.name(i), reason) for i, reason in views.bad.items()]


def evaluate(run: TrainRun, system: System, data: Source, device: torch.device) -> list[Result]:
    """Top-1, and top-5 of more than five classes, on all test pictures that can be read."""
    found, index = answers(run, system, data, [])
    assert data.labels is not None
    own = translate(run.system.classes, data.classes)
    truth = own[torch.from_numpy(data.labels)[index]]  # [N]
    settings: dict[str, Any] = {
        "system": run.name,
        "classes": len(run.system.classes),
        "labels": to_dict(run.system.labels),
        "seed": run.seed,
        "test": fingerprint(data),
        "unreadable": len(data) - len(index),
    }
    results = []
    for k in (1, BEST) if len(run.system.classes) > BEST else (1,):
        hits = (found.topk(k, 1).indices == truth[:, None]).any(1).numpy()
        interval = bootstrap(hits, run.seed)
        results.append(
            Result(
                model=run.name,
                protocol=PROTOCOL,
                metric=f"top{k}",
                value=interval.value,
                low=interval.low,
                high=interval.high,
                n=len(hits),
                settings=settings,
                hits=pack(hits),
            )
        )
    return results


def answers(
    run: TrainRun, system: System, source: Source, unreadable: list[Bad]
) -> tuple[Float[Tensor, "n k"], Tensor]:
    """Probabilities of the classes of every readable picture, and its number."""
    told, rows, at = counter("seen"), [], []
    preprocess = preprocess_for(system.encoder, run.normalize)
    stream = batches(system.encoder, source, preprocess, TEST_BATCH, run.engine.workers, unreadable)
    with evaluating(system):
        for x, index in stream:
            rows.append(system.predict(x).cpu())
            at.append(index)
            told(sum(map(len, at)), len(source))
    check_any(len(rows), unreadable)
    return torch.cat(rows), torch.cat(at)


def predict(
    run: TrainRun, system: System, pictures: str, out: Path, device: torch.device
) -> list[Bad]:
    """`predictions.json` and `.csv`: the class of every picture, its confidence, and runners-up."""
    source = opened(pictures, run.backbone.channels)
    unreadable: list[Bad] = []
    found, index = answers(run, system, source, unreadable)
    classes = run.system.classes
    best = found.topk(min(BEST, len(classes)), 1)
    rows = []
    for i, values, numbers in zip(index.tolist(), *map(Tensor.tolist, best), strict=True):
        ranked = {classes[k]: value for k, value in zip(numbers, values, strict=True)}
        first = classes[numbers[0]]
        row = {"picture": source.name(i), "class": first, "confidence": values[0]}
        rows.append({**row, "best": ranked})
    write_json(out / "predictions.json", {"classes": classes, "pictures": rows})
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("picture", "class", "confidence"))
        table.writerows((r["picture"], r["class"], f"{r['confidence']:.6f}") for r in rows)
    return unreadable
