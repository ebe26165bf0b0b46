"""Batches of views, made by threads ahead of the training loop.

Threads take a few pictures of a batch at a time, so that several work on the batch that is needed
next. 8-bit RGB pictures become views one by one, the way `cpu` does it; for a GPU, their crops
travel as 8-bit pixels and `augment` changes the colors there. All others are made by `augment` and
`band_views`. What a batch holds is a function of (seed, epoch, step): not of threads, of ranks, or
of where the run was resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from ..core import View, Views
from ..errors import RunError
from ..nn.random import fold, keys, permutation, salt
from ..recipe import Normalize
from . import augment, band_views, decode
from .cpu import Draws, Maker
from .reuse import Pool
from .source import BadPicture, Source
from .threads import ordered

# Pictures, seed and epoch to the pictures of an epoch: i + k pictures is i again, drawn anew.
Order = Callable[[int, int, int], Int64[Tensor, "n"]]

# The bad picture i and a random number to the picture to try in its place.
Other = Callable[[int, int], int]

T = TypeVar("T")

PIECE = 16  # pictures that a thread takes at a time, at most
TRIES = 100  # other pictures tried in place of one that cannot be read


@dataclass(frozen=True, slots=True)
class Making:
    """A batch while threads fill it in."""

    slots: Int64[np.ndarray, "b"]
    key: Int64[Tensor, "b"]
    draws: Draws
    index: Int64[np.ndarray, "b"]  # like the slots, but for pictures that cannot be read
    memory: Shaped[Tensor, "n"]  # of all images
    images: list[Shaped[Tensor, "b c _ _"]]  # parts of it


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
        order: Order = permutation,
        other: Other | None = None,
    ) -> None:
        _check(source, views, normalize, batch_size, world, threads)
        views = tuple(band_views.fitted(view, source.channels) for view in views)
        self.source, self.normalize, self.seed = source, normalize, seed
        self.views = [replace(view, count=1) for view in views for _ in range(view.count)]
        self.batch_size, self.rows = batch_size, batch_size // world
        self.rank, self.threads, self.prefetch = rank, threads, prefetch
        self.device = torch.device(device)
        self.maker, self.pool = Maker(self.views, normalize), Pool(pin=self.device.type == "cuda")
        self.eight_bit = source.channels == 3 and not source.wide
        self.order = order
        self.other = other or (lambda i, draw: draw % len(source))
        self.labels = None if source.labels is None else torch.tensor(source.labels)
        self.steps = len(source) // batch_size
        self.bad = {}
        self.wait = 0.0

    def batches(self, epoch: int, start: int = 0) -> Generator[Views]:
        """The epoch's batches from step `start` on: this rank's rows of each."""
        order = self.order(len(self.source), self.seed, epoch)
        size = max(1, min(PIECE, self.rows // (2 * self.threads)))
        parts = [range(at, min(at + size, self.rows)) for at in range(0, self.rows, size)]
        steps = range(start, self.steps)

        def pieces() -> Iterator[tuple[Making, range]]:
            for step in steps:
                first = step * self.batch_size + self.rank * self.rows
                making = self._begin(order[first : first + self.rows], epoch)
                yield from ((making, part) for part in parts)

        ahead = (self.prefetch + 1) * len(parts) - 1
        stream = ordered(self._fill, pieces(), threads=self.threads, ahead=ahead)
        try:
            for _ in steps:
                began = time.perf_counter()
                making = [next(stream) for _ in parts][-1]
                self.wait += time.perf_counter() - began
                yield self._finish(making)
        finally:
            stream.close()

    def _begin(self, slots: Int64[Tensor, "b"], epoch: int) -> Making:
        """A batch with its draws made and memory for its images."""
        key = keys(self.seed, epoch, slots)
        done = self.device.type == "cpu" and self.eight_bit
        kind = np.dtype(np.float32 if done or self.source.wide else np.uint8)
        shapes = [(len(slots), self.source.channels, v.size, v.size) for v in self.views]
        lengths = [math.prod(shape) for shape in shapes]
        memory = self.pool.take(sum(lengths), kind)
        parts = zip(memory.split(lengths), shapes, strict=True)
        return Making(
            slots=slots.numpy(),
            key=key,
            draws=self.maker.draw(key),
            index=slots.numpy().copy(),
            memory=memory,
            images=[part.view(shape) for part, shape in parts],
        )

    def _fill(self, piece: tuple[Making, range]) -> Making:
        """The work of a thread: some pictures of a batch, read and made into views or crops."""
        making, rows = piece
        if self.eight_bit:
            for row in rows:
                picture, scale = self._open(making, row)
                self.maker.make(picture, scale, making.draws, row, making.memory)
            if making.memory.dtype == torch.float32:
                self.maker.strengthen(making.draws, rows, making.memory)
            return making
        crops = [self._crops(making, row) for row in rows]
        part = slice(rows.start, rows.stop)
        for v in range(len(self.views)):
            x = torch.stack([each[v] for each in crops])
            if self.device.type == "cpu":
                x = self._color(x, making.key[part], v)
            making.images[v][part] = x
        return making

    def _open(self, making: Making, row: int) -> tuple[Tensor, int]:
        """A picture, and how many times smaller it was decoded; its boxes are at its full size."""
        source = self.source

        def shrink(height: int, width: int) -> int:
            return self.maker.boxes(making.draws, row, height, width)

        def read(i: int) -> tuple[Tensor, int]:
            return decode.shrunk(source.stored(i), "", source.channels, shrink, wide=source.wide)

        # The views of a replacement are drawn from the key of i: twice in a batch, it differs.
        i, key = int(making.slots[row]) % len(source), making.key[row : row + 1]
        making.index[row], (picture, scale) = readable(source, i, key, self.bad, self.other, read)
        return picture, scale

    def _crops(self, making: Making, row: int) -> list[Shaped[Tensor, "c _ _"]]:
        picture, _ = self._open(making, row)
        crops = [
            augment.resized_crop(picture, (top, left, h, w), view)
            for (top, left, h, w), view in zip(
                making.draws.boxes[row].tolist(), self.views, strict=True
            )
        ]
        flips = making.draws.flips[row]
        return [x.flip(-1) if flip else x for x, flip in zip(crops, flips, strict=True)]

    def _color(
        self, x: Shaped[Tensor, "b c s s"], key: Int64[Tensor, "b"], v: int
    ) -> Float[Tensor, "b c s s"]:
        """Crops with their colors changed and normalized, on the device they are on."""
        color = band_views.color if self.source.wide else augment.color
        return color(x, self.views[v], fold(key, v), self.normalize)

    def _finish(self, making: Making) -> Views:
        """The batch on the device."""

        def move(x: Tensor) -> Tensor:
            return x.to(self.device, non_blocking=True)

        key, images = move(making.key), [move(x) for x in making.images]
        if self.device.type != "cpu":
            images = [self._color(x, key, v) for v, x in enumerate(images)]
        index, edges, flips = (
            torch.from_numpy(x) for x in (making.index, making.draws.edges, making.draws.flips)
        )
        return Views(
            images=images,
            index=move(index),
            key=key,
            boxes=list(move(edges).unbind(1)),
            flips=list(move(flips).unbind(1)),
            labels=None if self.labels is None else move(self.labels[index]),
            mean=self.normalize.mean,
            std=self.normalize.std,
        )


def readable(
    source: Source,
    i: int,
    key: Int64[Tensor, "1"],
    bad: dict[int, str],
    other: Other,
    read: Callable[[int], T],
) -> tuple[int, T]:
    """What `read` makes of a picture, and its number: i, or where i is bad one that the key of i
    chooses."""
    for attempt in range(TRIES):
        if i not in bad:
            try:
                return i, read(i)
            except BadPicture as error:
                bad[i] = error.reason
        i = other(i, int(fold(fold(key, salt("replacement")), attempt)))
    name, reason = source.name(i), bad.get(i, "")
    raise RunError(f"data: {TRIES} pictures in a row cannot be read, such as {name}: {reason}")


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
        augment.check_view(view, place)
        if view.strong.name != "none" and (source.wide or source.channels != 3):
            raise ValueError(
                f"setting views.{place}.strong.name={view.strong.name} needs 8-bit RGB pictures; "
                f"set views.{place}.strong.name=none"
            )


def check_channels(normalize: Normalize, channels: int) -> None:
    """Raise ValueError where mean and std are not one for each channel."""
    for name, values in (("mean", normalize.mean), ("std", normalize.std)):
        if len(values) != channels:
            raise ValueError(
                f"setting normalize.{name} has {len(values)} values, the data {channels} channels; "
                f"set normalize.{name}=[...] with one for each, as `saccade doctor` prints them"
            )
