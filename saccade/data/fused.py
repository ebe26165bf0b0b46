"""Views of an 8-bit RGB picture on one core, without Python's lock: compiled by numba.

A view is two steps. `crop` resizes and mirrors a box of the picture in 16-bit integers: down the
columns first, four rows at a time, then along the rows, eight pixels at a time. `color` interprets
the view's program, a list of operations with one number each, on rows that stay in the core's
nearest cache; it only walks the picture anew where an operation needs all of it (contrast its mean,
blur its neighbors). The meaning of each operation is that of `augment`, which does the same for
batches on any device.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Int16, Int32, Int64, UInt8
from numba import njit

from .opcodes import BLUR, BRIGHTNESS, CONTRAST, GRAYSCALE, HUE, LANES, SATURATION, SOLARIZE, SPAN
from .vector import KEPT, ROWS, UNIT, WIDE, banded, combined, stacked

REACH = 3  # sigmas on either side of a blurred pixel
BLOCK = 1024  # pixels that stay in the core's nearest cache

RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # ITU-R 601
ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
THREE, FOUR, SIX = np.float32(3), np.float32(4), np.float32(6)
TOP, TINY = np.float32(255), np.float32(1e-12)
CUBIC = np.float32(1.5), np.float32(2.5), np.float32(2.5)  # of the kernel with a = -1/2

compiled = njit(nogil=True, fastmath=True, error_model="numpy")


# The crop.


@compiled
@no_type_check
def crop(
    picture: UInt8[np.ndarray, "H 3W"],
    box: Int64[np.ndarray, "4"],
    scale: int,
    bicubic: bool,
    mirrored: bool,
    out: UInt8[np.ndarray, "3 s s"],
) -> None:
    """The box at the size of `out`, antialiased; the picture was decoded `scale` times smaller."""
    size = out.shape[1]
    y0, ny, wy = taps(box[0] / scale, box[2] / scale, picture.shape[0], size, bicubic)
    x0, nx, wx = taps(box[1] / scale, box[3] / scale, picture.shape[1] // 3, size, bicubic)
    top, high, down = blocks(y0, ny, whole(ny, wy), ROWS, False)
    start, wide, along = blocks(x0, nx, whole(nx, wx), LANES, mirrored)
    left, n, last = 3 * x0[0], 3 * (x0[-1] + nx[-1] - x0[0]), y0[-1] + ny[-1] - 1
    line = np.zeros((ROWS, n + 3), np.int16)
    pairs = np.zeros((ROWS, n + 3), np.int32)
    done = np.empty((ROWS, 3, len(start) * LANES), np.uint8)
    for g in range(len(top)):
        for i in range(0, n - WIDE + 1, WIDE):
            stacked(picture, top[g], last, left + i, down, g, high[g], line, i)
        if n < WIDE:
            narrow(picture, top[g], last, left, down[g, : high[g]], line[:, :n])
        elif n % WIDE:
            stacked(picture, top[g], last, left + n - WIDE, down, g, high[g], line, n - WIDE)
        for r in range(ROWS):
            couple(line[r], pairs[r])
        for b in range(len(start)):
            banded(pairs, start[b] - x0[0], along, b, wide[b], done)
        for r in range(min(ROWS, size - g * ROWS)):
            for c in range(3):
                copy(done[r, c], out[c, g * ROWS + r])


@compiled
@no_type_check
def taps(start: float, length: float, limit: int, size: int, bicubic: bool):
    """For each of `size` pixels made of start..start+length: first source pixel, count, weights."""
    scale = length / size
    wide = max(scale, 1.0)
    support = wide * (2.0 if bicubic else 1.0)
    low, high = int(start), min(math.ceil(start + length), limit)
    first, count = np.empty(size, np.int64), np.empty(size, np.int64)
    offset, total = np.empty(size, np.float32), np.zeros(size, np.float32)
    weights = np.zeros((2 * math.ceil(support) + 4, size), np.float32)  # [k, i]
    for i in range(size):
        center = start + scale * (i + 0.5)
        first[i] = max(int(center - support + 0.5), low)
        count[i] = min(int(center + support + 0.5), high) - first[i]
        offset[i] = first[i] - center + 0.5
    inverse = np.float32(1 / wide)
    for k in range(most(count)):
        line, step = weights[k], np.float32(k)
        for i in range(size):
            x = abs((offset[i] + step) * inverse)
            if bicubic:
                near = (CUBIC[0] * x - CUBIC[1]) * x * x + ONE
                far = ((CUBIC[2] - HALF * x) * x - FOUR) * x + TWO
                w = near if x < ONE else (far if x < TWO else ZERO)
            else:
                w = max(ONE - x, ZERO)
            line[i] = w if k < count[i] else ZERO
            total[i] += line[i]
    for k in range(most(count)):
        line = weights[k]
        for i in range(size):
            line[i] /= total[i]
    return first, count, weights


@compiled
@no_type_check
def whole(count: Int64[np.ndarray, "n"], weights: Float32[np.ndarray, "k n"]):
    """Weights as integers of 16 bits that sum to `UNIT`; the middle tap takes what is left."""
    rounded, total = np.empty(weights.shape, np.int32), np.zeros(len(count), np.int32)
    for k in range(len(weights)):
        line, out = weights[k], rounded[k]
        for i in range(len(count)):
            out[i] = np.int32(np.floor(line[i] * np.float32(UNIT) + HALF))
            total[i] += out[i]
    for i in range(len(count)):
        rounded[count[i] // 2, i] += UNIT - total[i]
    return rounded


@compiled
@no_type_check
def blocks(first, count, weights: Int32[np.ndarray, "k n"], lanes: int, mirrored: bool):
    """The taps of some neighbors as one small dense matrix over the pixels they share.

    Returns each block's first pixel, pairs of pixels, and weights [block, pair, lane], a pair of
    weights in a number.
    """
    size = len(first)
    number = (size + lanes - 1) // lanes
    start, pairs = np.empty(number, np.int64), np.empty(number, np.int64)
    for b in range(number):
        low, high = b * lanes, min(size, (b + 1) * lanes) - 1
        if mirrored:
            low, high = size - 1 - high, size - 1 - low
        start[b] = first[low]
        pairs[b] = (first[high] + count[high] - first[low] + 1) // 2
    dense = np.zeros((number, most(pairs), lanes), np.int32)
    for i in range(size):
        b, source = i // lanes, size - 1 - i if mirrored else i
        for k in range(count[source]):
            at = first[source] - start[b] + k
            weight = np.int32(weights[k, source] & 0xFFFF)
            dense[b, at // 2, i % lanes] |= weight << np.int32(16 * (at % 2))
    return start, pairs, dense


@compiled
@no_type_check
def most(numbers) -> int:
    """`numbers.max()`, which numba compiles to a call of its own library."""
    found = numbers[0]
    for number in numbers:
        found = max(found, number)
    return found


@compiled
@no_type_check
def narrow(picture, first, last, left, weights: Int32[np.ndarray, "k 4"], out) -> None:
    """`stacked` for less than `WIDE` bytes."""
    for r in range(ROWS):
        for i in range(out.shape[1]):
            total = (UNIT >> KEPT) // 2
            for k in range(len(weights)):
                upper, lower = first + 2 * k, min(first + 2 * k + 1, last)
                total += np.int16(weights[k, r]) * np.int64(picture[upper, left + i])
                total += (weights[k, r] >> 16) * np.int64(picture[lower, left + i])
            out[r, i] = total // (UNIT >> KEPT)


@compiled
@no_type_check
def couple(line: Int16[np.ndarray, "n"], out: Int32[np.ndarray, "n"]) -> None:
    """Each number and that of the next pixel as the halves of one; the last pixel has no next."""
    low = np.int32(0xFFFF)
    for i in range(len(line) - 3):
        out[i] = (np.int32(line[i]) & low) | (np.int32(line[i + 3]) << np.int32(16))


@compiled
@no_type_check
def copy(line: UInt8[np.ndarray, "n"], out: UInt8[np.ndarray, "s"]) -> None:
    for i in range(len(out)):
        out[i] = line[i]


# The colors.


@compiled
@no_type_check
def color(
    pixels: UInt8[np.ndarray, "3 hw"],
    operations: Int64[np.ndarray, "n"],
    values: Float32[np.ndarray, "n"],
    mean: Float32[np.ndarray, "3"],
    inverse: Float32[np.ndarray, "3"],
    lines: Float32[np.ndarray, "n"],
    target: Float32[np.ndarray, "3 hw"],
    out: Float32[np.ndarray, "3 h w"],
) -> None:
    """The picture in [0, 1] after each operation in turn, then normalized.

    `target` and `out` are the same memory.
    """
    at, n, began, middle = 0, len(operations), False, ZERO
    while True:
        stop = (
            at + 1 if began else 0
        )  # one walk over the picture, up to a blur or the next contrast
        while stop < n and operations[stop] != BLUR and operations[stop] != CONTRAST:
            stop += 1
        total = 0.0
        for start in range(0, target.shape[1], BLOCK):
            part = slice(start, min(start + BLOCK, target.shape[1]))
            r, g, b = target[0, part], target[1, part], target[2, part]
            if not began:
                load(pixels[0, part], r)
                load(pixels[1, part], g)
                load(pixels[2, part], b)
            for k in range(at, stop):
                adjust(operations[k], values[k], middle, r, g, b)
            if stop == n:
                normalize(mean[0], inverse[0], r)
                normalize(mean[1], inverse[1], g)
                normalize(mean[2], inverse[2], b)
            elif operations[stop] == CONTRAST:
                total += luma(r, g, b)
        if stop == n:
            return
        middle = np.float32(total / target.shape[1])
        if operations[stop] == BLUR:
            blur(values[stop], out, lines)
        at, began = stop, True


@compiled
@no_type_check
def adjust(operation, value, middle, r, g, b) -> None:
    """One operation on a row; `middle` is the mean gray of the picture before a contrast."""
    if operation == BRIGHTNESS:
        for i in range(len(r)):
            r[i] = min(r[i] * value, ONE)
            g[i] = min(g[i] * value, ONE)
            b[i] = min(b[i] * value, ONE)
    elif operation == CONTRAST:
        other = (ONE - value) * middle
        for i in range(len(r)):
            r[i] = min(max(r[i] * value + other, ZERO), ONE)
            g[i] = min(max(g[i] * value + other, ZERO), ONE)
            b[i] = min(max(b[i] * value + other, ZERO), ONE)
    elif operation == SATURATION:
        for i in range(len(r)):
            other = (ONE - value) * (RED * r[i] + GREEN * g[i] + BLUE * b[i])
            r[i] = min(max(r[i] * value + other, ZERO), ONE)
            g[i] = min(max(g[i] * value + other, ZERO), ONE)
            b[i] = min(max(b[i] * value + other, ZERO), ONE)
    elif operation == HUE:
        hue(SIX * value, r, g, b)
    elif operation == GRAYSCALE:
        for i in range(len(r)):
            gray = RED * r[i] + GREEN * g[i] + BLUE * b[i]
            r[i] = gray
            g[i] = gray
            b[i] = gray
    elif operation == SOLARIZE:
        for i in range(len(r)):
            r[i] = min(r[i], ONE - r[i])
            g[i] = min(g[i], ONE - g[i])
            b[i] = min(b[i], ONE - b[i])


@compiled
@no_type_check
def hue(shift, r, g, b) -> None:
    """`augment.hue`, with the shift in sixths of the color circle."""
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        low = min(min(red, green), blue)
        span = max(max(red, green), blue) - low
        away = (green + blue - red - low) / max(span, TINY) + ONE
        angle = (away if green >= blue else -away) + shift
        angle -= SIX * np.floor(angle * (ONE / SIX))
        r[i] = low + span * min(max(abs(angle - THREE) - ONE, ZERO), ONE)
        g[i] = low + span * min(max(TWO - abs(angle - TWO), ZERO), ONE)
        b[i] = low + span * min(max(TWO - abs(angle - FOUR), ZERO), ONE)


@compiled
@no_type_check
def luma(r, g, b) -> float:
    """The sum of a row's gray."""
    total = ZERO
    for i in range(len(r)):
        total += RED * r[i] + GREEN * g[i] + BLUE * b[i]
    return total


@compiled
@no_type_check
def load(pixels, row) -> None:
    for i in range(len(row)):
        row[i] = np.float32(pixels[i]) * (ONE / TOP)


@compiled
@no_type_check
def normalize(mean, inverse, row) -> None:
    for i in range(len(row)):
        row[i] = (row[i] - mean) * inverse


@compiled
@no_type_check
def blur(sigma, x, lines) -> None:
    """Gaussian blur in place, mirrored at the edges: along the rows, then down the columns."""
    channels, height, width = x.shape
    wide = -(-width // SPAN) * SPAN
    reach = math.ceil(REACH * sigma)
    along, down = gaussian(sigma, min(reach, width - 1)), gaussian(sigma, min(reach, height - 1))
    k, j = len(along) // 2, len(down) // 2
    steps, starts = np.arange(len(along)), np.empty(len(down), np.int64)
    padded, line = np.zeros(wide + 2 * k, np.float32), np.empty(wide, np.float32)
    for c in range(channels):
        for y in range(height):
            mirror(x[c, y], k, padded)
            for i in range(0, wide, SPAN):
                combined(padded, steps, along, i, lines, y * wide + i)
        for y in range(height):
            for t in range(len(down)):
                near = abs(y + t - j)
                starts[t] = (near if near < height else 2 * height - 2 - near) * wide
            row = x[c, y]
            if wide == width:
                for i in range(0, wide, SPAN):
                    combined(lines, starts, down, i, row, i)
                continue
            for i in range(0, wide, SPAN):
                combined(lines, starts, down, i, line, i)
            for i in range(width):
                row[i] = line[i]


@compiled
@no_type_check
def mirror(row, k, out) -> None:
    """The row, with k numbers more at either end."""
    middle = out[k : k + len(row)]
    for i in range(len(row)):
        middle[i] = row[i]
    for i in range(k):
        out[i] = row[k - i]
        out[k + len(row) + i] = row[len(row) - 2 - i]


@compiled
@no_type_check
def gaussian(sigma, reach):
    """Weights from -reach to reach."""
    weights = np.empty(2 * reach + 1)
    for k in range(-reach, reach + 1):
        weights[k + reach] = math.exp(-0.5 * (k / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)
