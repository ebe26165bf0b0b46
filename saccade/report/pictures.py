"""Pictures for the page: pixels of any kind as RGB, sheets of thumbnails, data URIs."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Int, Shaped
from PIL import Image
from torch import Tensor

from ..data import decode
from ..data.source import BadPicture, Source
from ..data.threads import ordered
from ..engine.log import counter
from ..recipe import Normalize

MOST = 10_000  # thumbnails of a page
AREA = 10_500_000  # pixels of a sheet: phones decode no more than 16 M
SMALLEST, LARGEST = 32, 96  # pixels of a thumbnail
BYTES = 6_000_000  # of all sheets of a page; 8 MB as text
QUALITIES = (75, 60, 45, 30, 15)  # of WebP, until the sheet fits
SPREAD = 2.0  # deviations about the mean that bands other than 8-bit are shown in


@dataclass(frozen=True, slots=True)
class Sheet:
    """Square thumbnails in rows of one picture."""

    data: bytes  # WebP
    size: int  # pixels of a side
    columns: int
    points: list[int]  # which picture each shows


def shown(x: Shaped[Tensor, "c h w"], normalize: Normalize, *, wide: bool) -> Image.Image:
    """Decoded pixels as RGB: two channels as gray, more than three by the first three."""
    if not wide:
        return as_image(x.float() / 255)
    mean, std = (torch.tensor(v)[:, None, None] for v in (normalize.mean, normalize.std))
    return as_image((x - mean) / (2 * SPREAD * std) + 0.5)


def denormalized(x: Shaped[Tensor, "c h w"], normalize: Normalize, *, wide: bool) -> Image.Image:
    """What a network takes, as RGB."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (normalize.mean, normalize.std))
    return shown(x * std + mean, normalize, wide=True) if wide else as_image(x * std + mean)


def as_image(x: Shaped[Tensor, "c h w"]) -> Image.Image:
    """Pixels in 0..1."""
    rgb = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
    array = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(array.contiguous().numpy())


def thumbnail(source: Source, i: int, size: int, normalize: Normalize) -> Image.Image:
    """The central square of a picture; gray where it cannot be read."""
    try:
        x, _ = decode.shrunk(
            source.stored(i),
            source.name(i),
            source.channels,
            lambda height, width: _scale(min(height, width), size),
            wide=source.wide,
        )
    except BadPicture:
        return Image.new("RGB", (size, size), "gray")
    return square(shown(x, normalize, wide=source.wide), size)


def square(picture: Image.Image, size: int) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    middle = picture.crop((left, top, left + side, top + side))
    return middle.resize((size, size), Image.Resampling.BICUBIC)


def _scale(side: int, size: int) -> int:
    """How many times smaller a JPEG may be decoded and still fill the thumbnail."""
    return next((k for k in (8, 4, 2) if side >= k * size), 1)


def sheet(
    source: Source, index: Int[np.ndarray, "n"], normalize: Normalize, *, threads: int, share: int
) -> Sheet:
    """Thumbnails of these pictures, or of MOST of them evenly spread, within BYTES / share."""
    n = min(len(index), MOST // share)
    points = [i * len(index) // n for i in range(n)]
    size = max(SMALLEST, min(LARGEST, math.isqrt(AREA // share // n)))
    columns = math.isqrt(n - 1) + 1
    page = Image.new("RGB", (columns * size, -(-n // columns) * size))
    told = counter("thumbnails")
    stream = ordered(
        lambda i: thumbnail(source, i, size, normalize),
        [int(index[p]) for p in points],
        threads=threads,
        ahead=64,
    )
    for k, one in enumerate(stream):
        page.paste(one, (k % columns * size, k // columns * size))
        told(k + 1, n)
    return Sheet(_fitting(page, BYTES // share), size, columns, points)


def _fitting(page: Image.Image, most: int) -> bytes:
    data = b""
    for quality in QUALITIES:
        data = encoded(page, "WEBP", quality)
        if len(data) <= most:
            break
    return data


def encoded(picture: Image.Image, format: str, quality: int) -> bytes:
    held = BytesIO()
    picture.save(held, format, quality=quality, **({"method": 2} if format == "WEBP" else {}))
    return held.getvalue()


def uri(picture: Image.Image, quality: int = 80) -> str:
    """A JPEG as text that a page can hold."""
    data = encoded(picture.convert("RGB"), "JPEG", quality)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def row(pictures: Sequence[Image.Image], height: int, gap: int = 4) -> Image.Image:
    """Pictures beside each other, as high as each other."""
    sized = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    strip = Image.new("RGB", (sum(p.width + gap for p in sized) - gap, height), "white")
    x = 0
    for p in sized:
        strip.paste(p, (x, 0))
        x += p.width + gap
    return strip
