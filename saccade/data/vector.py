"""Sums that numba's compiler would not keep in registers, written as vector instructions.

LLVM turns them into what the machine has.
"""

from __future__ import annotations

from contextlib import contextmanager

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .opcodes import LANES, SPAN

ROWS = 4  # rows of a picture that `stacked` and `banded` compute at once
WIDE = 2 * LANES  # bytes that `stacked` does
UNIT = 1 << 14  # what weights sum to
KEPT = 6  # bits behind the point between the two passes of a crop

F32, I8, I16, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (8, 16, 32, 64))
VECTOR, INTEGERS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
BYTES, SHORTS = ir.VectorType(I8, WIDE), ir.VectorType(I16, WIDE)  # shorts: pairs, one a lane


@intrinsic
def stacked(typing, picture, first, last, column, weights, group, count, out, to):
    """out[r, to + i] = sum_k weights[group, k // 2, r][k % 2] picture[first + k, column + i]

    for i < 16, 4 rows r and 2 `count` rows k of the picture, none beyond `last`; `KEPT` bits are
    kept.
    """
    number = types.intp
    signature = types.void(picture, number, number, number, weights, number, number, out, number)

    def generate(context, builder, signature, args):
        picture, weights, out = (_array(context, builder, signature, args, k) for k in (0, 4, 7))
        _, first, last, column, _, group, count, _, to = args
        cells = [(r, half) for r in range(ROWS) for half in range(2)]
        with _sums(builder, count, len(cells), INTEGERS, _half(UNIT >> KEPT)) as (k, sums):
            upper = builder.add(first, builder.mul(k, I64(2)))
            lower = builder.add(upper, I64(1))
            lower = builder.select(builder.icmp_signed("<", lower, last), lower, last)
            lines = [
                _load(builder, _at(builder, picture, row, column), BYTES, align=1)
                for row in (upper, lower)
            ]
            pairs = [_interleaved(builder, lines[0], lines[1], half) for half in range(2)]
            for (r, half), total in zip(cells, sums, strict=True):
                weight = builder.load(_at(builder, weights, group, k, I64(r)))
                _add_products(builder, total, pairs[half], _pairs(builder, weight))
        for (r, half), total in zip(cells, sums, strict=True):
            value = _shifted(builder, builder.load(total), UNIT >> KEPT)
            place = _at(builder, out, I64(r), builder.add(to, I64(half * LANES)))
            _store(builder, builder.trunc(value, ir.VectorType(I16, LANES)), place, align=2)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def banded(typing, lines, first, weights, block, count, out):
    """out[r, c, 8 b : 8 b + 8] = sum_k lines[r, 3 (first + k) + c] weights[b, k // 2, :][k % 2]

    for 4 rows r and 2 `count` pixels k, rounded to bytes; a number of `lines` is two pixels, k and
    k + 1.
    """
    number = types.intp
    signature = types.void(lines, number, weights, number, number, out)

    def generate(context, builder, signature, args):
        lines, weights, out = (_array(context, builder, signature, args, k) for k in (0, 2, 5))
        _, first, _, block, count, _ = args
        cells = [(r, c) for r in range(ROWS) for c in range(3)]
        with _sums(builder, count, len(cells), INTEGERS, _half(UNIT << KEPT)) as (k, sums):
            place = _at(builder, weights, block, k, I64(0))
            weight = builder.bitcast(_load(builder, place, INTEGERS), SHORTS)
            pixel = builder.mul(builder.add(first, builder.mul(k, I64(2))), I64(3))
            for (r, c), total in zip(cells, sums, strict=True):
                pair = builder.load(_at(builder, lines, I64(r), builder.add(pixel, I64(c))))
                _add_products(builder, total, _pairs(builder, pair), weight)
        for (r, c), total in zip(cells, sums, strict=True):
            value = _shifted(builder, builder.load(total), UNIT << KEPT)
            place = _at(builder, out, I64(r), I64(c), builder.mul(block, I64(LANES)))
            _store(builder, _byte(builder, value), place, align=1)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def combined(typing, source, starts, weights, at, out, to):
    """out[to : to + 32] = sum_k weights[k] source[starts[k] + at : starts[k] + at + 32]."""
    signature = types.void(source, starts, weights, types.intp, out, types.intp)

    def generate(context, builder, signature, args):
        source, starts, weights, out = (
            _array(context, builder, signature, args, k) for k in (0, 1, 2, 4)
        )
        _, _, _, at, _, to = args
        (count,) = cgutils.unpack_tuple(builder, starts.shape)
        with _sums(builder, count, SPAN // LANES) as (k, sums):
            weight = _splat(builder, builder.load(_at(builder, weights, k)))
            start = builder.add(builder.load(_at(builder, starts, k)), at)
            for part, total in enumerate(sums):
                place = builder.add(start, I64(part * LANES))
                _add(builder, total, weight, _load(builder, _at(builder, source, place)))
        for part, total in enumerate(sums):
            place = _at(builder, out, builder.add(to, I64(part * LANES)))
            _store(builder, builder.load(total), place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def beyond(typing, pointer, count):
    """The address `count` numbers behind another."""

    def generate(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), generate


@contextmanager
def _sums(builder, count, number, kind=VECTOR, start=None):
    """A loop over k, with vectors that start at zero, or at `start`."""
    sums = [cgutils.alloca_once(builder, kind) for _ in range(number)]
    for total in sums:
        builder.store(ir.Constant(kind, start and [start] * LANES), total)
    with cgutils.for_range(builder, count) as loop:
        yield loop.index, sums


def _array(context, builder, signature, args, k):
    return context.make_array(signature.args[k])(context, builder, args[k])


def _at(builder, array, *place):
    """The address of array[place]; arrays are contiguous."""
    offset = I64(0)
    for size, index in zip(cgutils.unpack_tuple(builder, array.shape), place, strict=True):
        offset = builder.add(builder.mul(offset, size), index)
    return builder.gep(array.data, [offset])


def _load(builder, place, kind=VECTOR, align=4):
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=align)


def _store(builder, value, place, align=4):
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=align)


def _splat(builder, value, kind=VECTOR):
    """A vector of one number."""
    nowhere = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nowhere, value, I32(0))
    return builder.shuffle_vector(first, nowhere, _places([0] * LANES))


def _pairs(builder, value):
    """A vector of one pair of 16-bit numbers, which come as 32 bits."""
    return builder.bitcast(_splat(builder, value, INTEGERS), SHORTS)


def _interleaved(builder, a, b, half):
    """Eight bytes of a and of b, in turns, as 16-bit numbers."""
    places = [place for i in range(LANES) for place in (half * LANES + i, WIDE + half * LANES + i)]
    return builder.zext(builder.shuffle_vector(a, b, _places(places)), SHORTS)


def _places(numbers):
    return ir.Constant(ir.VectorType(I32, len(numbers)), list(numbers))


def _half(unit):
    """What makes a shift round: 32-bit."""
    return unit >> 1


def _shifted(builder, value, unit):
    """Integers divided by a power of 2, towards minus infinity."""
    return builder.ashr(value, ir.Constant(INTEGERS, [unit.bit_length() - 1] * LANES))


def _byte(builder, value):
    """Integers between 0 and 255."""
    for sign, end in (("<", 0), (">", 255)):
        limit = ir.Constant(INTEGERS, [end] * LANES)
        value = builder.select(builder.icmp_signed(sign, value, limit), limit, value)
    return builder.trunc(value, ir.VectorType(I8, LANES))


def _add(builder, total, a, b):
    product = builder.fmul(a, b, flags=["fast"])
    builder.store(builder.fadd(builder.load(total), product, flags=["fast"]), total)


def _add_products(builder, total, a, b):
    """total += a[0::2] b[0::2] + a[1::2] b[1::2]: one instruction where a machine has it."""
    double = ir.VectorType(I32, WIDE)
    product = builder.mul(builder.sext(a, double), builder.sext(b, double))
    nowhere = ir.Constant(double, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(product, nowhere, _places(range(start, WIDE, 2))) for start in (0, 1)
    )
    builder.store(builder.add(builder.load(total), builder.add(even, odd)), total)
