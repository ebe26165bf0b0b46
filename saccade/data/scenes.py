"""Batches of whole pictures with their objects, made by threads ahead of the loop.

What a batch holds is a function of (seed, epoch, step), as for views.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..core import Framing, Scenes
from ..nn.random import keys, permutation, uniform
from ..recipe import Normalize
from .augment import normalizer
from .decode import BadPicture
from .detection import Annotated, Objects, bitmaps
from .loader import check_channels, readable
from .source import Source
from .threads import ordered


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """One picture at the size it trains at."""

    pixels: UInt8[Tensor, "c h w"]
    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, "n"]
    masks: UInt8[Tensor, "m h w"]  # as many as boxes, or none
    stored: tuple[int, int]
    index: int


class SceneLoader:
    """Every picture of an epoch once, at a short side that its key draws, perhaps mirrored."""

    steps: int  # of an epoch; the last pictures that do not fill a batch wait for another epoch
    bad: dict[int, str]  # pictures found unreadable so far: index, reason
    wait: float  # seconds the loop has waited for batches

    def __init__(
        self,
        data: Annotated,
        framing: Framing,
        normalize: Normalize,
        *,
        masks: bool,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        device: str | torch.device = "cpu",
    ) -> None:
        check_framing(framing)
        check_channels(normalize, data.pictures.channels)
        if batch_size > len(data.objects):
            raise ValueError(
                f"setting batch_size={batch_size} is larger than the data; "
                f"{len(data.objects)} pictures have objects, choose at most that"
            )
        self.data, self.framing, self.normalize, self.masks = data, framing, normalize, masks
        self.batch_size, self.rows, self.seed = batch_size, batch_size // world, seed
        self.rank, self.threads, self.device = rank, threads, torch.device(device)
        self.steps = len(data.objects) // batch_size
        self.bad = {}
        self.wait = 0.0

    def batches(self, epoch: int, start: int = 0) -> Generator[Scenes]:
        """The epoch's batches from step `start` on: this rank's rows of each."""
        order = permutation(len(self.data.objects), self.seed, epoch)

        def work(step: int) -> Scenes:
            first = step * self.batch_size + self.rank * self.rows
            return self._batch(order[first : first + self.rows], epoch)

        steps = range(start, self.steps)
        stream = ordered(work, steps, threads=self.threads, ahead=2)
        try:
            for _ in steps:
                began = time.perf_counter()
                batch = next(stream)
                self.wait += time.perf_counter() - began
                yield to_device(batch, self.device)
        finally:
            stream.close()

    def _batch(self, rows: Int64[Tensor, "b"], epoch: int) -> Scenes:
        key = keys(self.seed, epoch, rows)
        which = uniform(key, 1, "short")[:, 0] * len(self.framing.short)
        mirrored = uniform(key, 1, "flip")[:, 0] < self.framing.flip
        framed, n = [], len(self.data.objects)
        for b, row in enumerate(rows.tolist()):
            source, own = self.data.pictures, key[b : b + 1]
            i, pixels = readable(source, row, own, self.bad, lambda _, draw: draw % n, source.read)
            short = self.framing.short[int(which[b])]
            objects = self.data.objects[i]
            objects = objects.rows(~objects.crowd)
            one = framed_picture(pixels, objects, short, self.framing.longest, i, self.masks)
            framed.append(mirror(one) if mirrored[b] else one)
        return collate(framed, self.normalize)


def whole_pictures(
    source: Source,
    framing: Framing,
    normalize: Normalize,
    *,
    batch_size: int,
    threads: int,
    device: torch.device,
    bad: dict[int, str],
) -> Generator[Scenes]:
    """All pictures in order at the test size, without objects; unreadable ones go into `bad`."""

    def work(i: int) -> Framed | None:
        try:
            pixels = source.read(i)
        except BadPicture as error:
            bad[i] = error.reason
            return None
        return framed_picture(pixels, NOTHING, framing.test_short, framing.longest, i, False)

    waiting: list[Framed] = []
    stream = ordered(work, range(len(source)), threads=threads, ahead=2 * batch_size)
    for one in stream:
        if one is not None:
            waiting.append(one)
        if len(waiting) == batch_size:
            yield to_device(collate(waiting, normalize), device)
            waiting = []
    if waiting:
        yield to_device(collate(waiting, normalize), device)


NOTHING = Objects(
    boxes=np.zeros((0, 4), np.float32),
    labels=np.zeros(0, np.int64),
    crowd=np.zeros(0, bool),
    difficult=np.zeros(0, bool),
    areas=np.zeros(0, np.float32),
)


def framed_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """The size at which the short side is `short` pixels, or the long one `longest`."""
    scale = min(short / min(height, width), longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def framed_picture(
    pixels: UInt8[Tensor, "c H W"],
    objects: Objects,
    short: int,
    longest: int,
    index: int,
    masks: bool,
) -> Framed:
    """A picture and its objects, resized together."""
    height, width = pixels.shape[1:]
    h, w = framed_size(height, width, short, longest)
    small = F.interpolate(pixels[None], (h, w), mode="bilinear", antialias=True)[0]
    scale = torch.tensor([w / width, h / height] * 2)
    outlines = torch.zeros(0, h, w, dtype=torch.uint8)
    if masks and len(objects.labels):
        whole = torch.from_numpy(bitmaps(objects, height, width))
        outlines = F.interpolate(whole[None], (h, w), mode="nearest-exact")[0]
    return Framed(
        pixels=small,
        boxes=torch.from_numpy(objects.boxes) * scale,
        labels=torch.from_numpy(objects.labels),
        masks=outlines,
        stored=(height, width),
        index=index,
    )


def mirror(one: Framed) -> Framed:
    """Left and right exchanged."""
    x0, y0, x1, y1 = one.boxes.unbind(1)
    width = one.pixels.shape[2]
    return replace(
        one,
        pixels=one.pixels.flip(2),
        boxes=torch.stack([width - x1, y0, width - x0, y1], 1),
        masks=one.masks.flip(2),
    )


def collate(framed: list[Framed], normalize: Normalize) -> Scenes:
    """One batch: normalized, with zeros to the right and below."""
    mean, inverse = normalizer(normalize, torch.device("cpu"))
    sizes = [(f.pixels.shape[1], f.pixels.shape[2]) for f in framed]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images = torch.zeros(len(framed), framed[0].pixels.shape[0], height, width)
    for x, f, (h, w) in zip(images, framed, sizes, strict=True):
        x[:, :h, :w] = (f.pixels.float() / 255 - mean) * inverse
    return Scenes(
        images=images,
        sizes=sizes,
        stored=[f.stored for f in framed],
        index=torch.tensor([f.index for f in framed]),
        boxes=[f.boxes for f in framed],
        labels=[f.labels for f in framed],
        masks=[f.masks for f in framed],
    )


def to_device(batch: Scenes, device: torch.device) -> Scenes:
    """The same batch there."""
    if device.type == "cpu":
        return batch
    return replace(
        batch,
        images=batch.images.to(device, non_blocking=True),
        index=batch.index.to(device),
        boxes=[x.to(device) for x in batch.boxes],
        labels=[x.to(device) for x in batch.labels],
        masks=[x.to(device) for x in batch.masks],
    )


def check_framing(framing: Framing) -> None:
    """Raise ValueError for settings that cannot be."""
    smallest = min((*framing.short, framing.test_short, framing.longest), default=0)
    if not framing.short or smallest < 1:
        raise ValueError(f"setting system.framing: {framing} has no size, or one below 1 pixel")
    if not 0 <= framing.flip <= 1:
        raise ValueError(f"setting system.framing.flip={framing.flip} is not in 0..1")
