"""Boxes and masks: systems that take `Scenes` and give `Found`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..config import to_dict
from ..core import Found, System
from ..data.bad import Bad
from ..data.decode import is_picture
from ..data.detection import (
    Annotated,
    NoSplit,
    in_memory_annotated,
    mask_tools,
    open_annotated,
)
from ..data.folder import Files
from ..data.scenes import SceneLoader, whole_pictures
from ..data.source import Source, Split, open_source
from ..engine.log import counter
from ..evals import detection as judge
from ..evals.results import Result, write_json
from ..nn import dist
from ..run import TrainRun

TEST_BATCH = 4  # pictures
DRAWN = 0.5  # score from which a box is drawn; predictions.json has them all
COLORS = (  # Okabe and Ito's, told apart by everybody
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)


def open_data(run: TrainRun, split: Split) -> Annotated | None:
    mask_tools()  # without it nothing can be judged: say so before training
    if split == "test":
        data = _test(run)
        return None if data is None else relabeled(data, run.system.classes)
    data = open_annotated(run.data, channels=run.backbone.channels)
    budget = int(run.engine.memory_gb * 2**30)
    data = in_memory_annotated(data, budget=budget, threads=run.engine.workers)
    trainable = [i for i, o in enumerate(data.objects) if not o.crowd.all()]
    if not trainable:
        raise ValueError(f"data {run.data}: no readable picture has an object to learn from")
    if run.system.masks and not all(data.objects[i].outlines for i in trainable):
        lacking = next(i for i in trainable if not data.objects[i].outlines)
        raise ValueError(
            f"setting system.masks: {data.pictures.name(lacking)} has boxes without outlines; "
            "set system.masks=false, or give data with outlines"
        )
    return data.rows(np.array(trainable, dtype=np.int64))


def _test(run: TrainRun) -> Annotated | None:
    channels = run.backbone.channels
    if run.eval_data:
        return open_annotated(run.eval_data, split="test", channels=channels)
    try:
        data = open_annotated(run.data, split="test", channels=channels)
    except NoSplit:
        return None
    return data if data.split == "test" else None


def fitted(run: TrainRun, data: Annotated) -> TrainRun:
    if run.system.classes not in ((), data.classes):
        raise ValueError(
            f"setting system.classes: {list(run.system.classes)} are not the data's "
            f"{list(data.classes)}; leave them out"
        )
    return replace(run, system=replace(run.system, classes=data.classes))


def summary(data: Annotated) -> str:
    objects, classes = data.count(), len(data.classes)
    return f"{len(data.objects)} pictures with {objects} objects of {classes} classes"


def bad(data: Annotated) -> list[Bad]:
    return data.bad


def record(run: TrainRun, data: Annotated, out: Path) -> None:
    """Nothing: all pictures with objects train."""


def loader(run: TrainRun, data: Annotated, device: torch.device) -> SceneLoader:
    return SceneLoader(
        data,
        run.system.framing,
        run.normalize,
        masks=run.system.masks,
        batch_size=run.batch_size,
        seed=run.seed,
        rank=dist.rank(),
        world=dist.world(),
        threads=run.engine.workers,
        device=device,
    )


def later_bad(loader: SceneLoader) -> list[Bad]:
    return [Bad(loader.data.pictures.name(i), reason) for i, reason in loader.bad.items()]


def evaluate(run: TrainRun, system: System, data: Annotated, device: torch.device) -> list[Result]:
    """AP on the test pictures that can be read."""
    found, sizes, rows = [], [], []
    for index, one, stored in seen(run, system, data.pictures, device, {}, "tested"):
        found.append(one)
        sizes.append(stored)
        rows.append(index)
    if not rows:
        raise ValueError("setting eval-data: none of its pictures can be read")
    settings = {
        "system": run.name,
        "framing": to_dict(run.system.framing),
        "classes": len(run.system.classes),
        "unreadable": len(data.objects) - len(rows),
    }
    truth = [data.objects[i] for i in rows]
    return judge.evaluate(
        found,
        truth,
        sizes,
        run.system.classes,
        model=run.name,
        settings=settings,
        seed=run.seed,
    )


def relabeled(data: Annotated, classes: tuple[str, ...]) -> Annotated:
    """The data with its classes numbered as in training."""
    used = sorted({int(k) for o in data.objects for k in o.labels})
    strange = [data.classes[k] for k in used if data.classes[k] not in classes]
    if strange:
        raise ValueError(
            f"setting eval-data: class {strange[0]!r} was not trained; "
            f"the system knows {', '.join(classes)}"
        )
    number = np.array([classes.index(c) if c in classes else -1 for c in data.classes])
    objects = [replace(o, labels=number[o.labels]) for o in data.objects]
    return replace(data, objects=objects, classes=classes)


def seen(
    run: TrainRun,
    system: System,
    source: Source,
    device: torch.device,
    unreadable: dict[int, str],
    what: str,
) -> Iterator[tuple[int, Found, tuple[int, int]]]:
    """Number, objects and stored size of every readable picture."""
    told, done = counter(what), 0
    batches = whole_pictures(
        source,
        run.system.framing,
        run.normalize,
        batch_size=TEST_BATCH,
        threads=run.engine.workers,
        device=device,
        bad=unreadable,
    )
    for batch in batches:
        found = system.predict(batch)
        done += len(found)
        told(done, len(source))
        yield from zip(batch.index.tolist(), found, batch.stored, strict=True)


def predict(
    run: TrainRun, system: System, pictures: str, out: Path, device: torch.device
) -> list[Bad]:
    """`predictions.json` and the pictures with what was found drawn on them."""
    source = opened(pictures, run.backbone.channels)
    rows: list[dict[str, Any]] = []
    unreadable: dict[int, str] = {}
    for index, found, (height, width) in seen(run, system, source, device, unreadable, "seen"):
        name = source.name(index)
        objects = described(found, run.system.classes)
        rows.append({"picture": name, "height": height, "width": width, "objects": objects})
        target = (out / "pictures" / f"{index:06d}-{Path(name).stem}").with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn(source.read(index), found, run.system.classes).save(target, quality=90)
        rows[-1]["drawn"] = str(target.relative_to(out))
    write_json(out / "predictions.json", {"classes": run.system.classes, "pictures": rows})
    return [Bad(source.name(i), reason) for i, reason in unreadable.items()]


def opened(pictures: str, channels: int) -> Source:
    """A picture file, or any source of pictures."""
    path = Path(pictures)
    if path.is_file() and is_picture(path.name):
        return Files(path.parent, [path.name], channels)
    return open_source(pictures, split="test", channels=channels)


def described(found: Found, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Class name, score, box as x0, y0, x1, y1 in pixels, and mask as COCO's run lengths."""
    rows: list[dict[str, Any]] = [
        {"class": classes[label], "score": score, "box": box}
        for label, score, box in zip(
            found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]
    if found.masks is not None:
        for row, mask in zip(rows, judge.encoded(found), strict=True):
            row["mask"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
    return rows


def drawn(pixels: torch.Tensor, found: Found, classes: Sequence[str]) -> Image.Image:
    """The picture with the objects above DRAWN, the best one on top."""
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
    for k in reversed(range(len(found.labels))):
        score, label = float(found.scores[k]), int(found.labels[k])
        if score < DRAWN:
            continue
        color = COLORS[label % len(COLORS)]
        if found.masks is not None:
            shade = Image.fromarray((found.masks[k].cpu().numpy() * 110).astype(np.uint8))
            picture.paste(Image.new("RGB", picture.size, color), mask=shade)
        pen = ImageDraw.Draw(picture)
        box = tuple(found.boxes[k].tolist())
        pen.rectangle(box, outline=color, width=max(2, picture.width // 200))
        text = f"{classes[label]} {score:.2f}"
        corner = pen.textbbox((box[0], max(box[1] - 12, 0)), text)
        pen.rectangle(corner, fill=color)
        pen.text((box[0], max(box[1] - 12, 0)), text, fill=(0, 0, 0))
    return picture
