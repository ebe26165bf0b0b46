"""Batches of crops with the class of every pixel, made by threads ahead of the loop.

What a batch holds is a function of (seed, epoch, step), as for views.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from ..core import IGNORED, Cropping, Segments, View
from ..nn.random import keys, permutation, uniform
from ..recipe import Normalize
from . import augment, band_views
from .decode import BadPicture
from .loader import check_channels, readable
from .segmentation import Masked
from .source import Source
from .threads import ordered

PLAIN = View(jitter=0.0, grayscale=0.0, blur=0.0)  # no change of colors


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One picture, or a part of it, as the network sees it."""

    image: Float[Tensor, "c h w"]
    labels: UInt8[Tensor, "H W"]  # of a whole picture in its stored size, none without a mask
    stored: tuple[int, int]
    index: int


class CropLoader:
    """Every picture of an epoch once: scaled, cut, perhaps mirrored, its colors changed."""

    steps: int  # of an epoch; the last pictures that do not fill a batch wait for another epoch
    bad: dict[int, str]  # pictures found unreadable so far: index, reason
    wait: float  # seconds the loop has waited for batches

    def __init__(
        self,
        data: Masked,
        cropping: Cropping,
        normalize: Normalize,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        device: str | torch.device = "cpu",
    ) -> None:
        n, channels = len(data.pictures), data.pictures.channels - 1
        check_channels(normalize, channels)
        if batch_size > n:
            raise ValueError(
                f"setting batch_size={batch_size} is larger than the data; "
                f"{n} pictures have masks, choose at most that"
            )
        view = replace(PLAIN, jitter=cropping.jitter, strength=cropping.strength)
        self.view = band_views.fitted(view, channels)
        check_cropping(cropping, self.view)
        self.data, self.cropping, self.normalize = data, cropping, normalize
        self.batch_size, self.rows, self.seed = batch_size, batch_size // world, seed
        self.rank, self.threads, self.device = rank, threads, torch.device(device)
        self.steps = n // batch_size
        self.bad = {}
        self.wait = 0.0

    def batches(self, epoch: int, start: int = 0) -> Generator[Segments]:
        """The epoch's batches from step `start` on: this rank's rows of each."""
        order = permutation(len(self.data.pictures), self.seed, epoch)

        def rows() -> Generator[Int64[Tensor, "1"]]:
            for step in range(start, self.steps):
                first = step * self.batch_size + self.rank * self.rows
                yield from order[first : first + self.rows].split(1)

        stream = ordered(
            lambda row: self._piece(row, epoch),
            rows(),
            threads=self.threads,
            ahead=2 * self.rows,
        )
        try:
            for _ in range(start, self.steps):
                began = time.perf_counter()
                pieces = [next(stream) for _ in range(self.rows)]
                self.wait += time.perf_counter() - began
                yield collate(pieces, self.device)
        finally:
            stream.close()

    def _piece(self, row: Int64[Tensor, "1"], epoch: int) -> Piece:
        source, key, n = self.data.pictures, keys(self.seed, epoch, row), len(self.data.pictures)
        i, picture = readable(
            source, int(row), key, self.bad, lambda _, draw: draw % n, source.read
        )
        *draws, mirrored = uniform(key, 4, "window")[0].tolist()
        pixels, labels = window(picture, self.cropping, draws)
        if mirrored < self.cropping.flip:
            pixels, labels = pixels.flip(2), labels.flip(1)
        image = colored(pixels, source, self.view, key, self.normalize)
        height, width = self.cropping.size
        edges = (0, width - labels.shape[1], 0, height - labels.shape[0])
        return Piece(
            image=F.pad(image, edges),
            labels=F.pad(labels, edges, value=IGNORED),
            stored=(picture.shape[1], picture.shape[2]),
            index=i,
        )


def whole_pictures(
    source: Source,
    cropping: Cropping,
    normalize: Normalize,
    *,
    batch_size: int,
    threads: int,
    device: torch.device,
    bad: dict[int, str],
) -> Generator[Segments]:
    """All pictures in order at the test size, those of one size together; labels where the source
    has a channel more than `normalize`. Unreadable ones go into `bad`."""
    channels = len(normalize.mean)

    def work(i: int) -> Piece | None:
        try:
            picture = source.read(i)
        except BadPicture as error:
            bad[i] = error.reason
            return None
        pixels, mask = picture[:channels], picture[channels:]
        height, width = pixels.shape[1:]
        small = resized(pixels, scaled(height, width, cropping.short))
        key = torch.zeros(1, dtype=torch.int64)  # nothing is drawn
        return Piece(
            image=colored(small, source, PLAIN, key, normalize),
            labels=mask[0].to(torch.uint8) if len(mask) else torch.empty(0, 0, dtype=torch.uint8),
            stored=(height, width),
            index=i,
        )

    waiting: list[Piece] = []
    for one in ordered(work, range(len(source)), threads=threads, ahead=2 * batch_size):
        if one is None:
            continue
        if len(waiting) == batch_size or (waiting and waiting[0].image.shape != one.image.shape):
            yield collate(waiting, device)
            waiting = []
        waiting.append(one)
    if waiting:
        yield collate(waiting, device)


def window(
    picture: Shaped[Tensor, "d H W"], cropping: Cropping, draws: list[float]
) -> tuple[Shaped[Tensor, "c h w"], UInt8[Tensor, "h w"]]:
    """Pixels and labels of a part of the picture at a drawn scale; smaller than the crop where
    the picture ends. The draws say how large, how far down and how far to the right."""
    height, width = picture.shape[1:]
    low, high = cropping.scale
    base = cropping.short / min(height, width) if cropping.short else 1.0
    scale = base * (low + (high - low) * draws[0])
    part, size = [slice(0)], []
    for side, most, draw in zip((height, width), cropping.size, draws[1:], strict=True):
        length = min(side, max(1, round(most / scale)))
        start = int(draw * (side - length + 1))
        part.append(slice(start, start + length))
        size.append(min(most, max(1, round(length * scale))))
    x = picture[:, part[1], part[2]]
    labels = F.interpolate(x[None, -1:], tuple(size), mode="nearest-exact")[0, 0]
    return resized(x[:-1], (size[0], size[1])), labels.to(torch.uint8)


def resized(pixels: Shaped[Tensor, "c H W"], size: tuple[int, int]) -> Shaped[Tensor, "c h w"]:
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def scaled(height: int, width: int, short: int) -> tuple[int, int]:
    """The size at which the short side has so many pixels; 0 keeps it."""
    scale = short / min(height, width) if short else 1.0
    return max(1, round(height * scale)), max(1, round(width * scale))


def colored(
    pixels: Shaped[Tensor, "c h w"],
    source: Source,
    view: View,
    key: Int64[Tensor, "1"],
    normalize: Normalize,
) -> Float[Tensor, "c h w"]:
    """Colors changed as the key draws, then normalized."""
    color = band_views.color if source.wide else augment.color
    return color(pixels[None], view, key, normalize)[0]


def collate(pieces: list[Piece], device: torch.device) -> Segments:
    """One batch on the device."""
    images = torch.stack([p.image for p in pieces])
    return Segments(
        images=images.to(device, non_blocking=True),
        stored=[p.stored for p in pieces],
        index=torch.tensor([p.index for p in pieces], device=device),
        labels=[p.labels.to(device) for p in pieces],
    )


def check_cropping(cropping: Cropping, view: View) -> None:
    """Raise ValueError for settings that cannot be."""
    at = "setting system.cropping"
    if min(cropping.size) < 1 or cropping.short < 0:
        raise ValueError(f"{at}: size={cropping.size}, short={cropping.short}; give whole pixels")
    if not 0 < cropping.scale[0] <= cropping.scale[1]:
        raise ValueError(f"{at}.scale={cropping.scale} is not a range above 0")
    for name, value in (("flip", cropping.flip), ("jitter", cropping.jitter)):
        if not 0 <= value <= 1:
            raise ValueError(f"{at}.{name}={value} is not a probability in 0..1")
    if min(view.strength) < 0 or view.strength[3] > 0.5:
        raise ValueError(f"{at}.strength={view.strength} must be positive, with hue at most 0.5")
