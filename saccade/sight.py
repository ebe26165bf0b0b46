"""Panels of what a network sees in pictures: each kind a function from `Sight` to `Panel`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from . import microscope
from .core import Backbone, PatchBackbone
from .drawing import patches
from .drawing.colors import dimmed, heat, paint, photo
from .drawing.sheet import Box, Cell, Row, bars, sheet
from .inside import Inside
from .revived import Drawn

MASS = 0.6  # of attention, in DINO's pictures
ACROSS, NEAREST = 6, 6  # cells in a line beside the first, neighbors of each of two kinds

Point = tuple[float, float]  # x, y as shares of the picture's sides


@dataclass(frozen=True, slots=True)
class Panel:
    """A contact sheet and the figures in it."""

    page: Image.Image
    numbers: Any = None  # ready for JSON


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Pictures in front of a network."""

    backbone: Backbone  # in eval mode
    names: list[str]
    inputs: list[Float[Tensor, "1 c _ _"]]
    shown: list[UInt8[Tensor, "3 _ _"]]
    query: Point | None  # in the first picture; None: CLS where there is one, else the center
    width: int  # of panels, pixels

    @cached_property
    def maps(self) -> list[Float[Tensor, "d _ _"]]:
        with torch.no_grad():
            return [self.backbone.features(x)[0].float().cpu() for x in self.inputs]

    @cached_property
    def rows(self) -> list[Float[Tensor, "_ d"]]:
        """Features of each picture's cells, in raster order."""
        return [m.flatten(1).mT for m in self.maps]

    def grid(self, i: int) -> tuple[int, int]:
        return self.maps[i].shape[1], self.maps[i].shape[2]

    @property
    def point(self) -> Point:
        return self.query or (0.5, 0.5)

    @property
    def cell(self) -> int:
        """The query's, in the first picture."""
        return patches.cell_at(*self.point, self.grid(0))

    def original(self, i: int, box: Box | None = None) -> Cell:
        return Cell(self.names[i], self.shown[i], box, smooth=True)

    def marked(self, grid: tuple[int, int], i: int = 0) -> Cell:
        """A picture with the query's cell framed, or the cell at the same place of another."""
        return self.original(i, patches.box_of(patches.cell_at(*self.point, grid), grid))


def _attention(sight: Sight) -> Panel:
    backbone = sight.backbone
    if isinstance(backbone, PatchBackbone) and (backbone.prefix or sight.query):
        return _heads(sight, backbone)
    rows: list[Row] = []
    numbers = []
    for i, x in enumerate(sight.inputs):
        seen = microscope.look(backbone, x, [sight.point])
        each = [s.maps.mean((0, 1)) for s in seen]
        reached = [m.masked_fill(m == 0, torch.nan) for m in each]
        cells = [Cell(f"{s.layer} {s.part}", heat(m)) for s, m in zip(seen, reached, strict=True)]
        rows += _lines(sight.marked(seen[0].grid, i), cells)
        for s in seen:
            numbers += _figures(sight.names[i], f"{s.layer} {s.part}", s.maps.flatten(1))
    x, y = sight.point
    title = (
        f"attention: what the cell at {x:.2f}, {y:.2f} looks at, mean of heads; gray: out of reach"
    )
    return Panel(sheet(title, rows, sight.width), numbers)


def _heads(sight: Sight, backbone: PatchBackbone) -> Panel:
    """DINO's pictures: the last block, head by head, and the cells that hold 60 %."""
    rows: list[Row] = []
    numbers = []
    for i, x in enumerate(sight.inputs):
        grid = (x.shape[2] // backbone.patch, x.shape[3] // backbone.patch)
        with torch.no_grad():
            table = backbone.attention(x)[0].float().cpu()  # [heads, P, P]
        cell = patches.cell_at(*sight.point, grid)
        row = table[:, backbone.prefix + cell if sight.query else 0, backbone.prefix :]
        keep = patches.mass_mask(row, MASS).unflatten(1, grid)
        masks = [_masked(sight.shown[i], k.float()) for k in keep]
        maps = [Cell(f"head {h + 1}", heat(m)) for h, m in enumerate(row.unflatten(1, grid))]
        first = sight.marked(grid, i) if sight.query else sight.original(i)
        mean = Cell("mean of heads", heat(row.mean(0).unflatten(0, grid)))
        for at in range(0, len(maps), ACROSS):
            start = (first, mean) if at == 0 else (None, None)
            rows.append([start[0], *maps[at : at + ACROSS]])
            shown = [Cell(f"{MASS:.0%}", m, smooth=True) for m in masks[at : at + ACROSS]]
            rows.append([start[1], *shown])
        numbers += _figures(sight.names[i], "last block", row)
    asks = "the query" if sight.query else "CLS"
    title = f"attention of {asks} in the last block, and the fewest cells with {MASS:.0%} of it"
    return Panel(sheet(title, rows, sight.width), numbers)


def _figures(picture: str, layer: str, rows: Float[Tensor, "heads n"]) -> list[dict[str, Any]]:
    """How wide each head looks: nothing for weights that may be below 0."""
    if bool((rows < 0).any()):
        return []
    held = patches.mass_mask(rows, MASS).float().mean(1)
    spread = patches.entropy(rows)
    return [
        {
            "picture": picture,
            "layer": layer,
            "head": h + 1,
            "cells_with_60_percent": float(held[h]),  # share of all cells
            "entropy": float(spread[h]),  # of the most there can be
            "sum": float(rows[h].sum()),
        }
        for h in range(len(rows))
    ]


def _masked(shown: UInt8[Tensor, "3 h w"], keep: Float[Tensor, "i j"]) -> UInt8[Tensor, "3 h w"]:
    """The picture, dark but for some cells of a map."""
    size = (shown.shape[1], shown.shape[2])
    return dimmed(shown, F.interpolate(keep[None, None], size, mode="nearest-exact")[0, 0])


def _lines(first: Cell, cells: Sequence[Cell]) -> list[Row]:
    """A picture, and what belongs to it beside and below."""
    parts = [cells[at : at + ACROSS] for at in range(0, len(cells), ACROSS)]
    return [[first if k == 0 else None, *part] for k, part in enumerate(parts)]


def _pca(sight: Sight) -> Panel:
    colors = patches.colored(patches.principal(torch.cat(sight.rows)))
    title = "pca: the first three principal components of all cells as red, green, blue"
    return Panel(_colored(sight, colors, title))


def _foreground(sight: Sight) -> Panel:
    x = torch.cat(sight.rows)
    edge = torch.cat([patches.border(sight.grid(i)) for i in range(len(sight.rows))])
    front = patches.foreground(patches.principal(x, 1)[:, 0], edge)
    colors = torch.full((len(x), 3), torch.nan)
    colors[front] = patches.colored(patches.principal(x[front]))
    title = "foreground: components of the cells on the side of the first that borders lie less on"
    return Panel(_colored(sight, colors, title), {"share": float(front.float().mean())})


def _colored(sight: Sight, colors: Float[Tensor, "n 3"], title: str) -> Image.Image:
    cells: list[Cell] = []
    parts = colors.split([len(r) for r in sight.rows])
    for i, part in enumerate(parts):
        made = photo(part.mT.unflatten(1, sight.grid(i)), (0.0,) * 3, (1.0,) * 3)
        cells += [sight.original(i), Cell("", made)]
    wide = 4 if len(parts) > 1 else 2
    return sheet(title, [cells[at : at + wide] for at in range(0, len(cells), wide)], sight.width)


def _similarity(sight: Sight) -> Panel:
    query = sight.rows[0][sight.cell]
    cells: list[Cell] = []
    for i, rows in enumerate(sight.rows):
        like = patches.cosines(query, rows).unflatten(0, sight.grid(i))
        label = f"cosine {float(like.min()):.2f} to {float(like.max()):.2f}"
        first = sight.original(i) if i else sight.marked(sight.grid(0))
        cells += [first, Cell(label, paint(like, min(0.0, float(like.min())), 1.0))]
    x, y = sight.point
    title = f"similarity: cosine with the cell at {x:.2f}, {y:.2f} of the first picture"
    wide = 4 if len(sight.rows) > 1 else 2
    page = sheet(title, [cells[k : k + wide] for k in range(0, len(cells), wide)], sight.width)
    return Panel(page)


def _neighbors(sight: Sight) -> Panel:
    query = sight.rows[0][sight.cell]
    own = patches.nearest(query, sight.rows[:1], NEAREST, without=sight.cell)
    others = patches.nearest(query, sight.rows[1:], NEAREST)
    found = [own, [(image + 1, cell, cosine) for image, cell, cosine in others]]
    rows: list[Row] = []
    numbers = []
    for k, part in enumerate(p for p in found if p):
        rows.append([sight.marked(sight.grid(0)) if k == 0 else None])
        for image, cell, cosine in part:
            box = patches.box_of(cell, sight.grid(image))
            label = f"{cosine:.3f} {sight.names[image]}"
            rows[-1] = [*rows[-1], near(sight.shown[image], box, label)]
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            numbers.append({"picture": sight.names[image], "x": x, "y": y, "cosine": cosine})
    x, y = sight.point
    title = f"neighbors of the cell at {x:.2f}, {y:.2f} in the first picture, and in the others"
    return Panel(sheet(title, rows, sight.width), numbers)


def near(shown: UInt8[Tensor, "3 h w"], box: Box, label: str) -> Cell:
    """A cell in a square of its surroundings, three cells wide or more."""
    _, height, width = shown.shape
    at = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    side = min(max(3 * (at[2] - at[0]), 3 * (at[3] - at[1]), 48), height, width)
    left = round(min(max((at[0] + at[2] - side) / 2, 0), width - side))
    top = round(min(max((at[1] + at[3] - side) / 2, 0), height - side))
    n = int(side)
    frame = ((at[0] - left) / n, (at[1] - top) / n, (at[2] - left) / n, (at[3] - top) / n)
    return Cell(label, shown[:, top : top + n, left : left + n], frame, smooth=True)


def _degeneracy(sight: Sight) -> Panel:
    each = [microscope.degeneracy(sight.backbone, x) for x in sight.inputs]
    numbers = []
    for parts in zip(*each, strict=True):  # the same layers for every picture
        means = {
            "degeneracy": [p.value for p in parts],
            "before": [p.before for p in parts],
            "found": [p.found for p in parts],
            "divergence": [p.divergence for p in parts],
            "unary_share": [p.unary_share for p in parts],
            "entropy": [p.entropy for p in parts],
        }
        numbers.append(
            {"layer": parts[0].layer, "part": parts[0].part, "queries": parts[0].queries}
            | {name: _known(sum(values) / len(values)) for name, values in means.items()}
        )
    values = {f"{n['layer']} {n['part']}": n["degeneracy"] for n in numbers}
    title = "degeneracy: mean cosine of the rows of different queries; 1: all look at the same"
    return Panel(bars(title, values, sight.width), numbers)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def system_panel(
    found: Sequence[tuple[UInt8[Tensor, "3 _ _"], list[Inside]]], sight: Sight
) -> Panel:
    """What the layers behind a system's encoder look at, a picture after the other."""
    rows: list[Row] = []
    numbers = []
    for i, (shown, parts) in enumerate(found):
        cells: list[Cell] = []
        for s in parts:
            label, map = f"{s.layer} {s.part}", s.maps.mean(0)
            cells.append(Cell(label, heat(map.masked_fill(map == 0, torch.nan)), s.asker))
            numbers += _figures(sight.names[i], label, s.maps.flatten(1))
        rows += _lines(Cell(sight.names[i], shown, smooth=True), cells)
    x, y = sight.point
    title = f"system: what is asked at {x:.2f}, {y:.2f} (framed) looks at; gray: nothing"
    return Panel(sheet(title, rows, sight.width), numbers)


def method_panel(drawn: Drawn, names: Sequence[str], width: int) -> Panel:
    """What a method drew, one picture a line."""
    rows: list[Row] = [
        [
            Cell(f"{label}, {names[i]}", photo(x[i], drawn.normalize.mean, drawn.normalize.std))
            for label, x in drawn.pictures.items()
        ]
        for i in range(len(names))
    ]
    return Panel(sheet(f"method: {drawn.method}, step {drawn.step}", rows, width))


DRAW: dict[str, Callable[[Sight], Panel]] = {
    "attention": _attention,
    "pca": _pca,
    "foreground": _foreground,
    "similarity": _similarity,
    "neighbors": _neighbors,
    "degeneracy": _degeneracy,
}
