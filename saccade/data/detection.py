"""Pictures with the objects in them: COCO JSON, VOC XML and YOLO text, told apart by their files.

Boxes are xyxy in pixels, from 0 at the left edge of the first pixel, whatever the files count from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from .bad import Bad
from .folder import Files
from .memory import Memory, in_memory
from .source import Source, Split, Subset

Number = float | int
Outline = list[list[Number]] | dict[str, Any]  # COCO's polygons x, y, x, y, ... or its RLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """What is in one picture."""

    boxes: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]  # COCO: many objects in one box; never trained on
    difficult: Bool[np.ndarray, "n"]  # VOC: trained on, neither right nor wrong in a test
    areas: Float32[np.ndarray, "n"]  # of the outline where the data has one, square pixels
    outlines: tuple[Outline, ...] = ()  # one an object, or none

    def rows(self, keep: Bool[np.ndarray, "n"]) -> Objects:
        """Some of the objects."""
        outlines = tuple(o for o, k in zip(self.outlines, keep, strict=False) if k)
        arrays = (self.boxes, self.labels, self.crowd, self.difficult, self.areas)
        boxes, labels, crowd, difficult, areas = (a[keep] for a in arrays)
        return Objects(
            boxes=boxes,
            labels=labels,
            crowd=crowd,
            difficult=difficult,
            areas=areas,
            outlines=outlines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """A data set of them."""

    pictures: Source
    objects: list[Objects]  # one a picture
    classes: tuple[str, ...]
    split: str  # "" where the data has no splits
    bad: list[Bad] = field(default_factory=list)  # files and boxes that were left out, and why

    def rows(self, rows: Int64[np.ndarray, "m"]) -> Annotated:
        """Some of the pictures, in the order given."""
        pictures = Subset(self.pictures, rows)
        return replace(self, pictures=pictures, objects=[self.objects[i] for i in rows])

    def count(self) -> int:
        return sum(len(o.labels) for o in self.objects)


@dataclass(kw_only=True)
class Entry:
    """One picture as its file describes it, before it is checked."""

    name: str
    height: Number = np.inf  # infinite where the file does not say
    width: Number = np.inf
    boxes: list[Sequence[Number]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)  # 0: the box's own
    outlines: list[Outline] = field(default_factory=list)

    def add(
        self,
        box: Sequence[Number],
        label: int,
        *,
        crowd: bool = False,
        difficult: bool = False,
        area: float = 0.0,
        outline: Outline | None = None,
    ) -> None:
        self.boxes.append(box)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        self.areas.append(area)
        if outline is not None:
            self.outlines.append(outline)


class NoSplit(ValueError):  # noqa: N818 (a fact of the data)
    """The data is fine and has no such split."""


def open_annotated(data: str, *, split: Split = "train", channels: int = 3) -> Annotated:
    """The annotated pictures that `data` names: a folder in one of the three forms, or a file.

    Data without splits comes whole: its own `split` is then "".
    """
    from . import coco, voc, yolo

    path = Path(data)
    if not path.exists():
        raise ValueError(f"data {data!r}: no such file or folder")
    readers = (coco, voc, yolo)
    reader = next((r for r in readers if r.fits(path)), None)
    if reader is None:
        raise ValueError(
            f"data {data} has no annotations; give COCO (annotations/instances_*.json, or one "
            "such file), VOC (Annotations/*.xml) or YOLO (a .yaml with names, or labels/*.txt)"
        )
    root, entries, classes, found, bad = reader.read(path, split)
    objects = []
    for entry in entries:
        one, wrong = checked(entry)
        objects.append(one)
        bad += wrong
    if not any(len(o.labels) for o in objects):
        raise ValueError(f"data {data}: none of its {len(objects)} pictures has an object")
    pictures = Files(root, [e.name for e in entries], channels)
    return Annotated(pictures=pictures, objects=objects, classes=classes, split=found, bad=bad)


def checked(entry: Entry) -> tuple[Objects, list[Bad]]:
    """The objects with boxes cut to the picture; a box without area is left out and told."""
    n = len(entry.labels)
    boxes = np.array(entry.boxes, dtype=np.float32).reshape(n, 4)
    limits = np.array([entry.width, entry.height] * 2, dtype=np.float32)
    cut = np.clip(boxes, 0, limits)
    sides = cut[:, 2:] - cut[:, :2]
    good = np.array(np.isfinite(boxes).all(1) & (sides > 0).all(1))
    bad = [
        Bad(entry.name, f"box {boxes[i].tolist()} has no area inside the picture")
        for i in np.flatnonzero(~good)
    ]
    own = np.array(entry.areas, dtype=np.float32)
    objects = Objects(
        boxes=cut,
        labels=np.array(entry.labels, dtype=np.int64),
        crowd=np.array(entry.crowd, dtype=bool),
        difficult=np.array(entry.difficult, dtype=bool),
        areas=np.where(own > 0, own, sides.prod(1)),
        outlines=tuple(entry.outlines) if len(entry.outlines) == n else (),
    )
    return objects.rows(good), bad


def in_memory_annotated(data: Annotated, *, budget: int, threads: int) -> Annotated:
    """The readable pictures, held decoded up to `budget` bytes; the others join `bad`."""
    held, bad = in_memory(data.pictures, budget=budget, threads=threads)
    assert isinstance(held, Memory)
    objects = [data.objects[i] for i in held.rows]
    return replace(data, pictures=held, objects=objects, bad=[*data.bad, *bad])


def bitmaps(objects: Objects, height: int, width: int) -> UInt8[np.ndarray, "n h w"]:
    """The outlines as pictures of 0 and 1."""
    mask = mask_tools()
    return np.stack([mask.decode(rle(o, height, width)) for o in objects.outlines])


def rle(outline: Outline, height: int, width: int) -> dict[str, Any]:
    """COCO's compressed run lengths of an outline."""
    mask = mask_tools()
    if isinstance(outline, list):
        return mask.merge(mask.frPyObjects(outline, height, width))
    if isinstance(outline["counts"], list):
        return mask.frPyObjects(outline, height, width)
    return outline


def mask_tools() -> Any:
    """faster-coco-eval's mask functions, which are COCO's."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise ValueError(
            "detection: faster-coco-eval is not here; pip install 'saccade[detect]'"
        ) from None
    return mask
