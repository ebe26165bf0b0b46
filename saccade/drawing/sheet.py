"""Contact sheets: rows of labelled pictures under a title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, LABEL, TITLE, SMALLEST = 6, 18, 26, 48  # pixels
MARK = "#D55E00"  # Okabe and Ito's vermilion
Box = tuple[float, float, float, float]  # x, y, x, y as shares of the picture's sides


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture, or the cells of a map, to be shown under a label."""

    label: str
    pixels: UInt8[Tensor, "3 h w"]
    box: Box | None = None  # drawn as a frame
    smooth: bool = False  # a photograph: its pixels are no cells


Row = Sequence[Cell | None]  # None leaves a place empty


def sheet(title: str, rows: Sequence[Row], width: int) -> Image.Image:
    """All rows, each cell of the same width, as high as its picture's shape wants."""
    columns = max(map(len, rows))
    side = max((width - GAP) // columns - GAP, SMALLEST)
    heights = [max((_height(c, side) for c in row if c), default=0) for row in rows]
    total = TITLE + sum(h + LABEL + GAP for h in heights)
    page = Image.new("RGB", (max(width, columns * (side + GAP) + GAP), total), "white")
    pen = ImageDraw.Draw(page)
    pen.text((GAP, TITLE / 2), title, "black", _font(15), anchor="lm")
    top = TITLE
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            if cell is not None:
                _put(page, pen, cell, (GAP + i * (side + GAP), top), side)
        top += height + LABEL + GAP
    return page


def bars(title: str, values: Mapping[str, float], width: int) -> Image.Image:
    """Shares of 1 as bars, one a line."""
    left, right, line = round(width * 0.4), 60, 20
    page = Image.new("RGB", (width, TITLE + line * len(values) + GAP), "white")
    pen = ImageDraw.Draw(page)
    pen.text((GAP, TITLE / 2), title, "black", _font(15), anchor="lm")
    for i, (name, value) in enumerate(values.items()):
        middle, span = TITLE + line * (i + 0.5), width - left - right
        pen.text((left - GAP, middle), name, "black", _font(12), anchor="rm")
        pen.rectangle((left, middle - 6, left + span, middle + 6), "#eeeeee")
        pen.rectangle((left, middle - 6, left + span * value, middle + 6), "#0072B2")
        pen.text((left + span + GAP, middle), f"{value:.3f}", "black", _font(12), anchor="lm")
    return page


def stacked(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages below each other."""
    size = (max(p.width for p in pages), sum(p.height for p in pages))
    whole, top = Image.new("RGB", size, "white"), 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    return whole


def _height(cell: Cell, side: int) -> int:
    """No higher than twice its width."""
    _, h, w = cell.pixels.shape
    return max(1, min(round(side * h / w), 2 * side))


def _put(
    page: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, at: tuple[int, int], side: int
) -> None:
    height = _height(cell, side)
    width = max(1, min(side, round(height * cell.pixels.shape[2] / cell.pixels.shape[1])))
    page.paste(_resized(cell, height, width), at)
    if cell.box is not None:
        x, y = at
        a, b, c, d = cell.box
        frame = (x + a * width, y + b * height, x + c * width - 1, y + d * height - 1)
        if frame[2] - frame[0] < 4:  # too small to see
            middle = (frame[0] + frame[2]) / 2, (frame[1] + frame[3]) / 2
            frame = (middle[0] - 2, middle[1] - 2, middle[0] + 2, middle[1] + 2)
        pen.rectangle(frame, outline="white", width=3)
        pen.rectangle(frame, outline=MARK, width=2)
    place = (at[0], at[1] + height + LABEL / 2 - 1)
    pen.text(place, _fitted(cell.label, side), "black", _font(11), anchor="lm")


def _resized(cell: Cell, height: int, width: int) -> Image.Image:
    x = cell.pixels[None].float()
    if cell.smooth or x.shape[3] > width:
        y = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    else:
        y = F.interpolate(x, (height, width), mode="nearest-exact")
    return Image.fromarray(y[0].round().byte().permute(1, 2, 0).contiguous().numpy())


def _fitted(text: str, width: int) -> str:
    """The end of a label that is too long."""
    while len(text) > 1 and _font(11).getlength(text) > width:
        text = "…" + text[2:]
    return text


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
