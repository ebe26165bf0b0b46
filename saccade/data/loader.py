"""Batches of views, made by threads ahead of the training loop.

What a batch holds is a function of (seed, epoch, step): not of threads, of ranks, or of where the
run was resumed.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..core import View, Views
from ..errors import RunError
from ..nn.random import fold, keys, salt
from ..recipe import Normalize
from . import augment
from .source import BadPicture, Source
from .threads import ordered

TRIES = 100  # other pictures tried in place of one that cannot be read


class ViewLoader:
    """The rows of `views`, each `count` times, of every picture of the source."""

    steps: int  # of an epoch; the last pictures that do not fill a batch wait for another epoch
    bad: dict[int, str]  # pictures found unreadable so far: index, reason
    wait: float  # seconds the loop has waited for batches

    def __init__(
        self,
        source: Source,
        views: tuple[View, ...],
        normalize: Normalize,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        prefetch: int = 2,
        device: str | torch.device = "cpu",
    ) -> None:
        _check(source, views, normalize, batch_size, world, threads)
        self.source, self.normalize, self.seed = source, normalize, seed
        self.views = [replace(view, count=1) for view in views for _ in range(view.count)]
        self.batch_size, self.rows = batch_size, batch_size // world
        self.rank, self.threads, self.prefetch = rank, threads, prefetch
        self.device = torch.device(device)
        self.steps = len(source) // batch_size
        self.bad = {}
        self.wait = 0.0

    def batches(self, epoch: int, start: int = 0) -> Generator[Views]:
        """The epoch's batches from step `start` on: this rank's rows of each."""
        order = permutation(len(self.source), self.seed, epoch)

        def work(step: int) -> Views:
            first = step * self.batch_size + self.rank * self.rows
            return self._crops(order[first : first + self.rows], epoch)

        steps = range(start, self.steps)
        stream = ordered(work, steps, threads=self.threads, ahead=self.prefetch)
        try:
            for _ in steps:
                began = time.perf_counter()
                batch = next(stream)
                self.wait += time.perf_counter() - began
                yield batch if self.device.type == "cpu" else self._color(batch)
        finally:
            stream.close()

    def _crops(self, slots: Int64[Tensor, "b"], epoch: int) -> Views:
        """The work of a thread: all of a batch on the CPU, its 8-bit crops for a GPU."""
        key = keys(self.seed, epoch, slots)
        each = [fold(key, v) for v in range(len(self.views))]
        draws = [augment.crop_draws(k) for k in each]
        shape = (len(slots), self.source.channels)
        images = [torch.empty(*shape, v.size, v.size, dtype=torch.uint8) for v in self.views]
        edges: list[list[tuple[float, ...]]] = [[] for _ in self.views]
        index = slots.clone()
        for row in range(len(slots)):
            index[row], picture = self._read(int(slots[row]), key[row : row + 1])
            h, w = picture.shape[1:]
            for v, view in enumerate(self.views):
                box = augment.crop_box(view, draws[v][row], h, w)
                images[v][row] = augment.resized_crop(picture, box, view)
                top, left, height, width = box
                edges[v].append((left / w, top / h, (left + width) / w, (top + height) / h))
        flips = [augment.flips(view, k) for view, k in zip(self.views, each, strict=True)]
        for image, flip in zip(images, flips, strict=True):
            image[flip] = image[flip].flip(-1)
        batch = Views(
            images=images, index=index, key=key, boxes=[torch.tensor(e) for e in edges], flips=flips
        )
        if self.device.type == "cpu":
            return self._color(batch)
        return replace(batch, images=[x.pin_memory() for x in images])

    def _color(self, batch: Views) -> Views:
        """The batch on the device, with its colors changed there and normalized."""

        def move(x: Tensor) -> Tensor:
            return x.to(self.device, non_blocking=True)

        key = move(batch.key)
        images = [
            augment.color(move(x), view, fold(key, v), self.normalize)
            for v, (view, x) in enumerate(zip(self.views, batch.images, strict=True))
        ]
        return Views(
            images=images,
            index=move(batch.index),
            key=key,
            boxes=[move(x) for x in batch.boxes],
            flips=[move(x) for x in batch.flips],
        )

    def _read(self, i: int, key: Int64[Tensor, "1"]) -> tuple[int, UInt8[Tensor, "c h w"]]:
        """A picture and its number: i, or where i is bad one that the key of i chooses.

        The views of a replacement are drawn from the key of i: twice in a batch, it differs.
        """
        for attempt in range(TRIES):
            if i not in self.bad:
                try:
                    return i, self.source.read(i)
                except BadPicture as bad:
                    self.bad[i] = bad.reason
            i = int(fold(fold(key, salt("replacement")), attempt)) % len(self.source)
        name, reason = self.source.name(i), self.bad.get(i, "")
        raise RunError(f"data: {TRIES} pictures in a row cannot be read, such as {name}: {reason}")


def permutation(n: int, seed: int, epoch: int) -> Int64[Tensor, "n"]:
    """The order of an epoch."""
    return fold(keys(seed, epoch, torch.arange(n)), salt("order")).argsort(stable=True)


def _check(
    source: Source,
    views: tuple[View, ...],
    normalize: Normalize,
    batch_size: int,
    world: int,
    threads: int,
) -> None:
    if batch_size < 1 or batch_size % world:
        raise ValueError(f"setting batch_size={batch_size} is not a multiple of {world} devices")
    if batch_size > len(source):
        raise ValueError(
            f"setting batch_size={batch_size} is larger than the data; "
            f"it has {len(source)} pictures, choose at most that"
        )
    if threads < 1:
        raise ValueError(f"setting workers={threads} is too small; choose at least 1")
    check_channels(normalize, source.channels)
    for place, view in enumerate(views):
        augment.check_view(view, place, source.channels)


def check_channels(normalize: Normalize, channels: int) -> None:
    """Raise ValueError where mean and std are not one for each channel."""
    for name, values in (("mean", normalize.mean), ("std", normalize.std)):
        if len(values) != channels:
            raise ValueError(
                f"setting normalize.{name} has {len(values)} values, the data {channels} channels; "
                f"set normalize.{name}=[...] with one for each"
            )
