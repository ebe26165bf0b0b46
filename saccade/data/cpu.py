"""Views of 8-bit RGB pictures on the CPU: drawn a batch at a time, made a picture at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8, UInt64
from torch import Tensor

from ..core import View
from ..nn.random import fold
from ..recipe import Normalize
from . import augment, drawn, fused

CODES = {
    "jitter": drawn.JITTER,
    "grayscale": fused.GRAYSCALE,
    "solarize": fused.SOLARIZE,
    "blur": fused.BLUR,
}


@dataclass(frozen=True, slots=True)
class Draws:
    """What is drawn for a batch: everything but the boxes, which depend on the pictures' sizes."""

    keys: UInt64[np.ndarray, "b"]
    flips: Bool[np.ndarray, "b v"]
    operations: Int64[np.ndarray, "b v n"]  # NOTHING where the draw says so
    values: Float32[np.ndarray, "b v n"]


class Row:
    """A view's color operations, ready for `drawn`."""

    def __init__(self, view: View) -> None:
        ops = [op for op in view.order if op in CODES and augment.chance(view, op) > 0]
        self.order = np.array([CODES[op] for op in ops], np.int64)
        self.chances = np.array([augment.chance(view, op) for op in ops], np.float32)
        self.ranges = np.array([*augment.factors(view), view.sigma], np.float32)
        self.length = len(ops) + 3 * ("jitter" in ops)


class Scratch(threading.local):
    """Memory of one thread, so that no picture waits for new pages."""

    def __init__(self, size: int) -> None:
        wide = -(-size // fused.SPAN) * fused.SPAN
        self.crops = np.empty(3 * size * size, np.uint8)
        self.lines = np.empty(size * wide, np.float32)


class Maker:
    """Makes views; `views` are single ones."""

    def __init__(self, views: Sequence[View], normalize: Normalize) -> None:
        self.views, self.normalize = views, normalize
        self.ranges = np.array([[*v.crop, *map(math.log, v.ratio)] for v in views])
        self.flips = np.array([v.flip for v in views], np.float32)
        self.rows = [Row(v) for v in views]
        self.sizes = np.array([v.size for v in views])
        self.bicubic = np.array([v.interpolation == "bicubic" for v in views])
        self.normal = np.array([normalize.mean, normalize.std], np.float32)
        self.normal[1] = 1 / self.normal[1]
        self.strong = [v for v, view in enumerate(views) if augment.chance(view, "strong")]
        self.scratch = Scratch(max(v.size for v in views))

    def draw(self, key: Int64[Tensor, "b"]) -> Draws:
        keys, n = key.numpy().view(np.uint64), max(row.length for row in self.rows)
        shape = (len(keys), len(self.views))
        flips, operations = np.empty(shape, bool), np.zeros((*shape, n), np.int64)
        draws = Draws(keys, flips, operations, np.zeros((*shape, n), np.float32))
        drawn.draw_flips(keys, self.flips, flips)
        for v, row in enumerate(self.rows):
            own = draws.operations[:, v], draws.values[:, v]
            drawn.draw_colors(keys, v, row.order, row.chances, row.ranges, *own)
        return draws

    def boxes(
        self,
        key: np.uint64,
        height: int,
        width: int,
        boxes: Int64[np.ndarray, "v 4"],
        edges: Float32[np.ndarray, "v 4"],
    ) -> int:
        """Fills in each view's box; returns how many times smaller the picture may be decoded."""
        return drawn.draw_boxes(key, self.ranges, self.sizes, height, width, boxes, edges)

    def make(
        self,
        picture: UInt8[Tensor, "3 h w"],
        scale: int,
        boxes: Int64[np.ndarray, "v 4"],
        draws: Draws,
        row: int,
        out: Shaped[np.ndarray, "n"],
    ) -> None:
        """Fills in the row of each view's images behind each other: 8-bit crops, or float32."""
        lines = picture.permute(1, 2, 0).contiguous().numpy().reshape(picture.shape[1], -1)
        rows, flips = len(draws.keys), draws.flips[row]
        shared = lines, scale, boxes, self.sizes, self.bicubic, flips
        if out.dtype == np.uint8:
            fused.make_crops(*shared, row, rows, out)
            return
        own, programs = self.scratch, (draws.operations[row], draws.values[row])
        fused.make_views(*shared, *programs, self.normal, own.crops, own.lines, row, rows, out)
        for v in self.strong:
            start = 3 * rows * int(np.square(self.sizes[:v]).sum())
            self._strong(lines, scale, boxes[v], draws, row, v, out[start:])

    def _strong(self, lines, scale, box, draws, row, v, out) -> None:
        """A view anew, with the operations that only `strong` knows."""
        size = self.views[v].size
        crop = np.empty((3, size, size), np.uint8)
        fused.crop(lines, box, scale, self.bicubic[v], draws.flips[row, v], crop)
        keys = fold(torch.from_numpy(draws.keys[row : row + 1].view(np.int64)), v)
        pixels = torch.from_numpy(crop)[None]
        made = augment.color(pixels, self.views[v], keys, self.normalize)
        out[row * crop.size : (row + 1) * crop.size] = made.flatten().numpy()
