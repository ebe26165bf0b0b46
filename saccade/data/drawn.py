"""What is drawn for views, compiled: `nn.random` and the reading of its draws, without a tensor."""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt64

from ..nn.random import GOLDEN, salt
from .fused import compiled
from .opcodes import BLUR, BRIGHTNESS, GRAYSCALE, JITTER, NOTHING, SOLARIZE

TRIES = 10  # of random resized crop, then the largest central crop of a legal shape
SCALES = (8, 4, 2)  # at which JPEG can be decoded smaller
U64 = np.uint64
STEP, FIRST, SECOND = U64(GOLDEN + (1 << 64)), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
BITS = np.float32(1 << 24)
LAST = np.float32(2)  # behind every place
CROPS, FLIPS, JITTERS, GRAYS, BLURS, SOLARS = (
    U64(salt(name)) for name in ("crop", "flip", "jitter", "grayscale", "blur", "solarize")
)


@compiled
@no_type_check
def mix(x):
    x = (x ^ (x >> U64(30))) * FIRST
    x = (x ^ (x >> U64(27))) * SECOND
    return x ^ (x >> U64(31))


@compiled
@no_type_check
def fold(key, value):
    return mix(mix(key + STEP) ^ (U64(value) * STEP))


@compiled
@no_type_check
def uniform(key, name, place):
    return np.float32(fold(fold(key, name), place) >> U64(40)) / BITS


@compiled
@no_type_check
def largest_scale(boxes: Int64[np.ndarray, "v 4"], sizes: Int64[np.ndarray, "v"]) -> int:
    """How many times smaller a picture may be decoded with every crop keeping its resolution."""
    for scale in SCALES:
        enough = True
        for v in range(len(boxes)):
            if min(boxes[v, 2], boxes[v, 3]) < scale * sizes[v]:
                enough = False
        if enough:
            return scale
    return 1


@compiled
@no_type_check
def draw_boxes(
    key: np.uint64,
    ranges: Float64[np.ndarray, "v 4"],
    sizes: Int64[np.ndarray, "v"],
    height: int,
    width: int,
    boxes: Int64[np.ndarray, "v 4"],
    edges: Float32[np.ndarray, "v 4"],
) -> int:
    """Top, left, height and width of each view's random resized crop, in whole pixels.

    Returns how many times smaller the picture may be decoded for views of these sizes.

    `edges` are left, top, right and bottom as shares of the picture. `ranges` are the smallest and
    largest area, and the logarithms of those of width / height.
    """
    for v in range(len(ranges)):
        own = fold(key, v)
        small, large, low, high = ranges[v]
        found = False
        for k in range(0, 4 * TRIES, 4):
            area = height * width * (small + (large - small) * uniform(own, CROPS, k))
            ratio = math.exp(low + (high - low) * uniform(own, CROPS, k + 1))
            w, h = int(np.rint(math.sqrt(area * ratio))), int(np.rint(math.sqrt(area / ratio)))
            if 0 < w <= width and 0 < h <= height:
                top = int(np.float64(uniform(own, CROPS, k + 2)) * (height - h + 1))
                left = int(np.float64(uniform(own, CROPS, k + 3)) * (width - w + 1))
                found = True
                break
        if not found:
            h, w = height, width
            if width / height < math.exp(low):
                h = int(np.rint(width / math.exp(low)))
            elif width / height > math.exp(high):
                w = int(np.rint(height * math.exp(high)))
            top, left = (height - h) // 2, (width - w) // 2
        boxes[v, 0], boxes[v, 1], boxes[v, 2], boxes[v, 3] = top, left, h, w
        edges[v, 0], edges[v, 1] = left / width, top / height
        edges[v, 2], edges[v, 3] = (left + w) / width, (top + h) / height
    return largest_scale(boxes, sizes)


@compiled
@no_type_check
def draw_flips(
    keys: UInt64[np.ndarray, "b"], chances: Float32[np.ndarray, "v"], out: Bool[np.ndarray, "b v"]
) -> None:
    """Which pictures are mirrored in which view."""
    for b in range(len(keys)):
        for v in range(len(chances)):
            out[b, v] = uniform(fold(keys[b], v), FLIPS, 0) < chances[v]


@compiled
@no_type_check
def draw_colors(
    keys: UInt64[np.ndarray, "b"],
    view: int,
    order: Int64[np.ndarray, "m"],
    chances: Float32[np.ndarray, "m"],
    ranges: Float32[np.ndarray, "5 2"],
    operations: Int64[np.ndarray, "b n"],
    values: Float32[np.ndarray, "b n"],
) -> None:
    """A view's program for each picture: the operations in turn, and the number each takes.

    `ranges` are those of the four adjustments and of the blur's sigma.
    """
    places = np.empty(4, np.float32)
    for b in range(len(keys)):
        key, at = fold(keys[b], view), 0
        for k in range(len(order)):
            op = order[k]
            if op == JITTER:
                happens = uniform(key, JITTERS, 0) < chances[k]
                for a in range(4):
                    places[a] = uniform(key, JITTERS, 5 + a)
                for _ in range(4):
                    a = places.argmin()
                    places[a] = LAST
                    low, high = ranges[a]
                    operations[b, at] = BRIGHTNESS + a if happens and low < high else NOTHING
                    values[b, at] = low + (high - low) * uniform(key, JITTERS, 1 + a)
                    at += 1
                continue
            name = GRAYS if op == GRAYSCALE else SOLARS if op == SOLARIZE else BLURS
            operations[b, at] = op if uniform(key, name, 0) < chances[k] else NOTHING
            values[b, at] = 0
            if op == BLUR:
                values[b, at] = ranges[4, 0] + (ranges[4, 1] - ranges[4, 0]) * uniform(key, name, 1)
            at += 1
