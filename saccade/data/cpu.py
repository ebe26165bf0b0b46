"""Views of 8-bit RGB pictures on the CPU: drawn a batch at a time, made a picture at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8, UInt64
from torch import Tensor

from ..core import View
from ..nn.random import fold
from ..recipe import Normalize
from . import augment, kernels, opcodes

CODES = {
    "jitter": opcodes.JITTER,
    "grayscale": opcodes.GRAYSCALE,
    "solarize": opcodes.SOLARIZE,
    "blur": opcodes.BLUR,
}


class Draws:
    """What is drawn for a batch. Boxes come as pictures are opened: they depend on their sizes."""

    def __init__(self, keys: UInt64[np.ndarray, "b"], views: int, operations: int) -> None:
        shape = len(keys), views
        self.keys: UInt64[np.ndarray, "b"] = keys
        self.flips: Bool[np.ndarray, "b v"] = np.empty(shape, bool)
        self.operations: Int64[np.ndarray, "b v n"] = np.zeros((*shape, operations), np.int64)
        self.values: Float32[np.ndarray, "b v n"] = np.zeros((*shape, operations), np.float32)
        self.boxes: Int64[np.ndarray, "b v 4"] = np.empty((*shape, 4), np.int64)  # y, x, h, w
        self.edges: Float32[np.ndarray, "b v 4"] = np.empty((*shape, 4), np.float32)
        self.colors = *kernels.addresses(self.operations, self.values), operations
        self.places = kernels.addresses(keys, self.boxes, self.edges)
        self.crops = kernels.addresses(self.boxes, self.flips)
        self.strong: dict[int, UInt8[Tensor, "b 3 s s"]] = {}  # crops of views that take `strong`


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
        wide = -(-size // opcodes.SPAN) * opcodes.SPAN
        self.crops = np.empty(3 * size * size, np.uint8)
        self.lines = np.empty(size * wide, np.float32)
        self.at = kernels.addresses(self.crops, self.lines)


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
        self.shapes = *kernels.addresses(self.ranges, self.sizes), len(views)
        self.kinds = *kernels.addresses(self.sizes, self.bicubic), len(views)
        self.scaling = kernels.addresses(self.normal)

    def draw(self, key: Int64[Tensor, "b"]) -> Draws:
        keys, n = key.numpy().view(np.uint64), max(row.length for row in self.rows)
        draws, own = Draws(keys, len(self.views), n), (keys, len(keys))
        kernels.draw_flips(*own, self.flips, len(self.flips), draws.flips)
        for v, row in enumerate(self.rows):
            program = v, len(self.rows), row.order, row.chances, len(row.order), row.ranges
            kernels.draw_colors(*own, *program, draws.operations, draws.values, n)
        for v in self.strong:
            draws.strong[v] = torch.empty(
                len(keys), 3, *[self.views[v].size] * 2, dtype=torch.uint8
            )
        return draws

    def boxes(self, draws: Draws, row: int, height: int, width: int) -> int:
        """Fills in the row's boxes; returns how many times smaller it may be decoded."""
        return kernels.draw_boxes(*draws.places, row, *self.shapes, height, width)

    def make(
        self,
        picture: UInt8[Tensor, "3 h w"],
        scale: int,
        draws: Draws,
        row: int,
        out: Shaped[Tensor, "n"],
    ) -> None:
        """Fills in the row of each view's images behind each other: 8-bit crops, or float32.

        Of a view with strong operations these still wait for `strengthen`.
        """
        pixels = picture.permute(1, 2, 0).contiguous()
        height, width, _ = pixels.shape
        shared = pixels.data_ptr(), height, width, scale, *draws.crops, row, len(draws.keys)
        if out.dtype == torch.uint8:
            kernels.make_crops(*shared, *self.kinds, out.data_ptr())
            return
        own = *self.scaling, *draws.colors, *self.scratch.at
        kernels.make_views(*shared, *self.kinds, *own, out.data_ptr())
        for v, crops in draws.strong.items():
            place, flags = draws.boxes[row, v], (int(self.bicubic[v]), int(draws.flips[row, v]))
            own = place, *flags, crops[row].data_ptr(), self.views[v].size
            kernels.crop(*shared[:4], *own)

    def strengthen(self, draws: Draws, rows: range, out: Float32[Tensor, "n"]) -> None:
        """Made views anew, with the operations that only `strong` knows: many rows at once."""
        part = slice(rows.start, rows.stop)
        keys = torch.from_numpy(draws.keys[part].view(np.int64))
        for v, crops in draws.strong.items():
            made = augment.color(crops[part], self.views[v], fold(keys, v), self.normalize)
            start = 3 * len(draws.keys) * int(np.square(self.sizes[:v]).sum())
            out[start : start + crops.numel()].view(crops.shape)[part] = made
