"""Sums that numba's compiler would not keep in registers, written as vector instructions.

LLVM turns them into what the machine has. numba's cache looks at the file of the calling function
only: after a change here, remove `__pycache__`.
"""

from __future__ import annotations

from contextlib import contextmanager

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8  # numbers in a vector
ROWS = 4  # rows that `banded` computes at once
SPAN = 4 * LANES  # numbers that `combined` does

F32, I64 = ir.FloatType(), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)
SPLAT = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
NOWHERE = ir.Constant(VECTOR, ir.Undefined)


@intrinsic
def banded(typing, lines, first, dense, block, count, out):
    """out[r, c, 8 b : 8 b + 8] = sum_k lines[r, 3 (first + k) + c] dense[b, k], for 4 rows."""
    number = types.intp
    signature = types.void(lines, number, dense, number, number, out)

    def generate(context, builder, signature, args):
        lines, dense, out = (_array(context, builder, signature, args, k) for k in (0, 2, 5))
        _, first, _, block, count, _ = args
        cells = [(r, c) for r in range(ROWS) for c in range(3)]
        with _sums(builder, count, len(cells)) as (k, sums):
            weights = _load(builder, _at(builder, dense, block, k, I64(0)))
            pixel = builder.mul(builder.add(first, k), I64(3))
            for (r, c), total in zip(cells, sums, strict=True):
                value = builder.load(_at(builder, lines, I64(r), builder.add(pixel, I64(c))))
                _add(builder, total, weights, _splat(builder, value))
        for (r, c), total in zip(cells, sums, strict=True):
            place = _at(builder, out, I64(r), I64(c), builder.mul(block, I64(LANES)))
            _store(builder, builder.load(total), place)
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


@contextmanager
def _sums(builder, count, number):
    """A loop over k, with vectors that start at zero."""
    sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(number)]
    for total in sums:
        builder.store(ir.Constant(VECTOR, None), total)
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


def _load(builder, place):
    return builder.load(builder.bitcast(place, VECTOR.as_pointer()), align=4)


def _store(builder, value, place):
    builder.store(value, builder.bitcast(place, VECTOR.as_pointer()), align=4)


def _splat(builder, value):
    """A vector of one number."""
    first = builder.insert_element(NOWHERE, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, NOWHERE, SPLAT)


def _add(builder, total, a, b):
    product = builder.fmul(a, b, flags=["fast"])
    builder.store(builder.fadd(builder.load(total), product, flags=["fast"]), total)
