"""What attention behind the encoder of a trained system looks at: in pyramids, regions and heads.

A layer is asked at one point of a picture. A pyramid's level answers for its cell there, over the
cells of the level that it looks at; a relation for the smallest region around the point, and shows
on every place the weights of the regions that cover it; learned region features for that region
too, with the mean of its bins; a block in a head for its cell. Rendering weighs no pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import run as runs
from . import trained
from .attention import LearnedRegionFeatures, ObjectRelation
from .attention.feature_pyramid_transformer import CrossAttention
from .core import Mechanism, Scenes, Segments, System
from .data import crops, scenes
from .data.source import Source
from .drawing.patches import box_of, cell_at
from .drawing.sheet import Box
from .microscope import Point
from .run import TrainRun
from .systems.detect import Detect
from .systems.segment import Segment

FINE = 4  # pixels between the places that regions are shown on

Pixels = tuple[float, float]  # x, y


@dataclass(frozen=True, slots=True)
class Inside:
    """One part of one layer."""

    layer: str
    part: str
    maps: Float[Tensor, "heads h w"]  # weights over the whole canvas
    asker: Box  # the cell or region that was asked


def looks(out: Path) -> bool:
    """Whether WEIGHTS is a run of `saccade train` whose system has attention behind its encoder."""
    if not (out / trained.STATE).is_file() or not (out / runs.FILE).is_file():
        return False
    _, system = trained.load(out)
    return isinstance(system, Detect | Segment) and bool(layers(system))


def layers(system: System) -> dict[str, nn.Module]:
    kinds = (CrossAttention, LearnedRegionFeatures, Mechanism, ObjectRelation)
    found = {n: m for n, m in system.named_modules() if isinstance(m, kinds)}
    return {n: m for n, m in found.items() if not n.startswith("encoder.")}


def look(
    out: Path, source: Source, point: Point, device: torch.device
) -> Iterator[tuple[Float[Tensor, "c H W"], list[Inside]]]:
    """Of every picture the normalized canvas that the system sees, and what its layers look at."""
    run, system = trained.load(out)
    system.to(device)
    for batch in _batches(run, source, device):
        height, width = _size(batch)
        images = batch.images[0]
        multiple = _multiple(system)
        canvas = F.pad(images, (0, -images.shape[2] % multiple, 0, -images.shape[1] % multiple))
        shares = (point[0] * width / canvas.shape[2], point[1] * height / canvas.shape[1])
        yield canvas.cpu(), seen(system, batch, shares, (canvas.shape[1], canvas.shape[2]))


@torch.no_grad()
def seen(
    system: System, batch: Scenes | Segments, point: Point, size: tuple[int, int]
) -> list[Inside]:
    """What the layers look at for one picture; the point and the size are the canvas's."""
    found: list[Inside] = []
    pooled: dict[str, list[tuple[float, Inside]]] = {}  # of each layer, level by level
    with ExitStack() as stack:
        for name, module in layers(system).items():
            match module:
                case CrossAttention():
                    hook = _of_pyramid(name, point, found)
                case ObjectRelation():
                    hook = _of_relation(name, point, size, found)
                case LearnedRegionFeatures():
                    hook = _of_features(name, point, size, pooled)
                case _:
                    hook = _of_block(name, point, found)
            stack.callback(module.register_forward_hook(hook).remove)
        system.predict(batch)
    return found + [min(each, key=lambda e: e[0])[1] for each in pooled.values()]


Hook = Callable[[Any, tuple[Any, ...], Any], None]


def _of_pyramid(name: str, point: Point, found: list[Inside]) -> Hook:
    def hook(module: Any, given: tuple[Any, ...], made: Any) -> None:
        x, other = given
        grid = (x.shape[2], x.shape[3])
        cell = cell_at(*point, grid)
        maps = module.look(x, other, torch.tensor([cell], device=x.device))[0]
        found.append(Inside(name, "attention", maps.cpu(), box_of(cell, grid)))

    return hook


def _of_block(name: str, point: Point, found: list[Inside]) -> Hook:
    def hook(module: Any, given: tuple[Any, ...], made: Tensor) -> None:
        grid = (made.shape[2], made.shape[3])
        cell = cell_at(*point, grid)
        parts = module.look(given[0], torch.tensor([cell], device=made.device))
        for part, maps in parts.items():
            found.append(Inside(name, part, maps[0, :, 0].cpu(), box_of(cell, grid)))

    return hook


def _of_relation(name: str, point: Point, size: tuple[int, int], found: list[Inside]) -> Hook:
    def hook(module: Any, given: tuple[Any, ...], made: Tensor) -> None:
        x, boxes, keys = given
        flat = boxes.flatten(0, -2)
        if not len(flat):
            return
        asker, _ = nearest(flat, (point[0] * size[1], point[1] * size[0]))
        weights = (
            module.attention(x, boxes, keys).movedim(-2, -3).flatten(0, -3)
        )  # [*B N, heads, M]
        sets = boxes.expand(1, *boxes.shape) if boxes.ndim == 2 else boxes
        maps = covered(sets[asker // boxes.shape[-2]], weights[asker], size)
        found.append(Inside(name, "regions", maps.cpu(), _share(flat[asker], size)))

    return hook


def _of_features(
    name: str,
    point: Point,
    size: tuple[int, int],
    pooled: dict[str, list[tuple[float, Inside]]],
) -> Hook:
    def hook(module: Any, given: tuple[Any, ...], made: Tensor) -> None:
        x, regions, stride, sizes = given
        if not len(regions):
            return
        asker, rank = nearest(regions[:, 1:], (point[0] * size[1], point[1] * size[0]))
        one = regions[asker : asker + 1]
        weights, cells = module.attention(x, one, stride, sizes)
        row = weights.mean(1)  # [1, N]
        maps = row.new_zeros(1, x.shape[2] * x.shape[3]).scatter_add(1, cells, row)
        maps = maps.unflatten(1, (x.shape[2], x.shape[3])).cpu()
        inside = Inside(name, f"bins, stride {stride}", maps, _share(one[0, 1:], size))
        pooled.setdefault(name, []).append((rank, inside))

    return hook


def nearest(boxes: Float[Tensor, "n 4"], point: Pixels) -> tuple[int, float]:
    """The smallest box around a point, else the one whose middle is next to it, and its rank."""
    boxes = boxes.double()
    at = torch.tensor(point, device=boxes.device, dtype=boxes.dtype)
    around = ((boxes[:, :2] <= at) & (at <= boxes[:, 2:])).all(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    away = ((boxes[:, :2] + boxes[:, 2:]) / 2 - at).norm(dim=1)
    rank = torch.where(around, area, away + 1e12)  # no picture has that many pixels
    best = int(rank.argmin())
    return best, float(rank[best])


def covered(
    boxes: Float[Tensor, "m 4"], weights: Float[Tensor, "heads m"], size: tuple[int, int]
) -> Float[Tensor, "heads h w"]:
    """On every place of the canvas the weights of all boxes that cover it."""
    y, x = (torch.arange(FINE / 2, side, FINE, device=boxes.device) for side in size)
    across = (boxes[:, :1] <= x) & (x <= boxes[:, 2:3])  # [M, w]
    down = (boxes[:, 1:2] <= y) & (y <= boxes[:, 3:])
    return torch.einsum("km,mh,mw->khw", weights, down.to(weights), across.to(weights))


def _share(box: Float[Tensor, "4"], size: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = box.tolist()
    return x0 / size[1], y0 / size[0], x1 / size[1], y1 / size[0]


def _multiple(system: System) -> int:
    assert isinstance(system, Detect | Segment)  # `looks` takes no others
    return system.neck.multiple if isinstance(system, Detect) else system.taps.multiple


def _size(batch: Scenes | Segments) -> tuple[int, int]:
    """Height and width of the one picture, without what it is filled up with."""
    if isinstance(batch, Scenes):
        return batch.sizes[0]
    return batch.images.shape[2], batch.images.shape[3]


def _batches(run: TrainRun, source: Source, device: torch.device) -> Iterator[Scenes | Segments]:
    """Each picture for itself, at the size of a test."""
    unreadable: dict[int, str] = {}
    more: dict[str, Any] = {"batch_size": 1, "threads": 1, "device": device, "bad": unreadable}
    if run.name == "detect":
        yield from scenes.whole_pictures(source, run.system.framing, run.normalize, **more)
    else:
        yield from crops.whole_pictures(source, run.system.cropping, run.normalize, **more)
    for reason in unreadable.values():
        raise ValueError(f"image {reason}; give a picture")
