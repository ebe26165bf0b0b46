"""Entries to the compiled functions of views, as machine code: `kernels` keeps it and calls it.

Only numbers and addresses come in, so that a call needs nothing of numba. Arrays are contiguous,
sizes follow the arrays they are of, and flags are 0 or 1.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, no_type_check

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types
from numba.np.numpy_support import carray

from . import drawn, fused, kernels
from .opcodes import SPAN
from .vector import beyond

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {}
I64 = ir.IntType(64)
ADDRESS = ir.IntType(8).as_pointer()
HEAD = 64  # bytes before the numbers of an array
OUTSIDE = ("malloc", "free", "memset", "memcpy", "memmove", "exp", "expf", "floorf")  # of libc


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


@entry
@no_type_check
def draw_flips(keys, b, chances, v, out) -> None:
    """keys [b], chances [v], out [b, v]."""
    drawn.draw_flips(carray(keys, b), carray(chances, v), carray(out, (b, v)))


@entry
@no_type_check
def draw_colors(keys, b, view, v, order, chances, m, ranges, operations, values, n) -> None:
    """keys [b], order and chances [m], ranges [5, 2], operations and values [b, v, n]."""
    drawn.draw_colors(
        carray(keys, b),
        view,
        carray(order, m),
        carray(chances, m),
        carray(ranges, (5, 2)),
        carray(operations, (b, v, n))[:, view],
        carray(values, (b, v, n))[:, view],
    )


@entry
@no_type_check
def draw_boxes(keys, boxes, edges, row, ranges, sizes, v, height, width):
    """keys, boxes and edges [b, v, 4] of a batch, of which a row is filled in; ranges [v, 4],
    sizes [v]."""
    start = 4 * v * row
    return drawn.draw_boxes(
        carray(keys, row + 1)[row],
        carray(ranges, (v, 4)),
        carray(sizes, v),
        height,
        width,
        carray(beyond(boxes, start), (v, 4)),
        carray(beyond(edges, start), (v, 4)),
    )


@entry
@no_type_check
def crop(picture, height, width, scale, box, bicubic, mirrored, out, size) -> None:
    """picture [height, 3 width], box [4], out [3, size, size]."""
    shape = (3, size, size)
    pixels = carray(picture, (height, 3 * width))
    fused.crop(pixels, carray(box, 4), scale, bicubic != 0, mirrored != 0, carray(out, shape))


@entry
@no_type_check
def color(pixels, height, width, operations, values, n, normal, lines, out) -> None:
    """pixels and out [3, height, width], operations and values [n], normal [2, 3].

    `lines` is scratch memory of `height` lines that `SPAN` divides.
    """
    own, wide = carray(normal, (2, 3)), -(-width // SPAN) * SPAN
    fused.color(
        carray(pixels, (3, height * width)),
        carray(operations, n),
        carray(values, n),
        own[0],
        own[1],
        carray(lines, height * wide),
        carray(out, (3, height * width)),
        carray(out, (3, height, width)),
    )


# All views of a picture in one call, as each call waits for Python's lock at its end.


@entry
@no_type_check
def make_crops(
    picture, height, width, scale, boxes, flips, row, rows, sizes, bicubic, v, out
) -> None:
    """As `make_views`, for 8-bit images that change their colors elsewhere."""
    pixels, own = carray(picture, (height, 3 * width)), carray(boxes, (rows, v, 4))[row]
    sides, cubic, mirrored = carray(sizes, v), carray(bicubic, v), carray(flips, (rows, v))
    start = 0
    for k in range(v):
        size, n = sides[k], 3 * sides[k] * sides[k]
        part = carray(beyond(out, start + row * n), (3, size, size))
        fused.crop(pixels, own[k], scale, cubic[k], mirrored[row, k], part)
        start += rows * n


@entry
@no_type_check
def make_views(
    picture,
    height,
    width,
    scale,
    boxes,
    flips,
    row,
    rows,
    sizes,
    bicubic,
    v,
    normal,
    operations,
    values,
    n,
    crops,
    lines,
    out,
) -> None:
    """Fills in one row of each view's images, which lie behind each other in `out`.

    picture [height, 3 width], boxes [rows, v, 4], flips [rows, v], sizes and bicubic [v],
    operations and values [rows, v, n], normal [2, 3]: mean and 1 / std. `crops` and `lines` are
    scratch memory for the largest view.
    """
    pixels, own = carray(picture, (height, 3 * width)), carray(boxes, (rows, v, 4))[row]
    sides, cubic, mirrored = carray(sizes, v), carray(bicubic, v), carray(flips, (rows, v))
    program = carray(operations, (rows, v, n)), carray(values, (rows, v, n))
    start, scaling = 0, carray(normal, (2, 3))
    for k in range(v):
        size, area = sides[k], sides[k] * sides[k]
        part = carray(crops, (3, size, size))
        fused.crop(pixels, own[k], scale, cubic[k], mirrored[row, k], part)
        view = beyond(out, 3 * (start + row * area))
        fused.color(
            carray(crops, (3, area)),
            program[0][row, k],
            program[1][row, k],
            scaling[0],
            scaling[1],
            carray(lines, size * (-(-size // SPAN) * SPAN)),
            carray(view, (3, area)),
            carray(view, (3, size, size)),
        )
        start += rows * area


def machine_code() -> bytes:
    """All entries as an object file for this machine, each under its own name.

    An entry takes 64-bit numbers and returns one: its result, 0 where it has none, or -1 where it
    failed.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    whole = llvm.parse_assembly(str(_memory()))
    for kernel in kernels.ALL:
        made = njit(tuple(map(_kind, kernel.kinds)), **OPTIONS)(FUNCTIONS[kernel.name])
        (compiled,) = made.overloads.values()
        whole.link_in(llvm.parse_assembly(compiled.library.get_llvm_str()))
        whole.link_in(llvm.parse_assembly(str(_named(kernel, compiled.fndesc.llvm_func_name))))
    needed = {f.name for f in whole.functions if f.is_declaration and "llvm." not in f.name}
    if strange := needed - {*OUTSIDE}:
        raise RuntimeError(f"compiled code calls {sorted(strange)}, which only numba has")
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if platform.machine().lower() in ("x86_64", "amd64") else "default",
        jit=True,
    )
    return target.emit_object(whole)


def _kind(kind: np.dtype | None) -> types.Type:
    return types.int64 if kind is None else types.CPointer(from_dtype(kind))


def _named(kernel: kernels.Kernel, symbol: str) -> ir.Module:
    """A function of a plain name and of 64-bit numbers, that calls numba's.

    It returns the result of that, or -1 where numba says that it failed.
    """
    module = ir.Module()
    words = [I64] * len(kernel.kinds)
    theirs = [I64 if kind is None else ADDRESS for kind in kernel.kinds]
    kind = ir.FunctionType(ir.IntType(32), [ADDRESS, ADDRESS, *theirs])
    target = ir.Function(module, kind, symbol)
    own = ir.Function(module, ir.FunctionType(I64, words), kernel.name)
    builder = ir.IRBuilder(own.append_basic_block())
    places = [builder.alloca(I64) for _ in range(2)]  # of the result and of an error
    builder.store(I64(0), places[0])
    values = [
        a if kind is None else builder.inttoptr(a, ADDRESS)
        for a, kind in zip(own.args, kernel.kinds, strict=True)
    ]
    status = builder.call(target, [*(builder.bitcast(p, ADDRESS) for p in places), *values])
    failed = builder.icmp_signed("!=", status, status.type(0))
    builder.ret(builder.select(failed, I64(-1), builder.load(places[0])))
    return module


def _memory() -> ir.Module:
    """Memory of arrays, as numba's runtime gives it: a header with a count of owners, then numbers.

    The header's first word is the count, and its fourth the address of the numbers.
    """
    module = ir.Module()
    allocate = ir.Function(module, ir.FunctionType(ADDRESS, [I64]), "malloc")
    release = ir.Function(module, ir.FunctionType(ir.VoidType(), [ADDRESS]), "free")
    kind = ir.FunctionType(ADDRESS, [I64, ir.IntType(32)])
    for name in ("NRT_MemInfo_alloc_aligned", "NRT_MemInfo_alloc_safe_aligned"):
        make = ir.Function(module, kind, name)
        builder = ir.IRBuilder(make.append_basic_block())
        align = builder.zext(make.args[1], I64)
        block = builder.call(allocate, [builder.add(builder.add(make.args[0], align), I64(HEAD))])
        first = builder.add(builder.ptrtoint(block, I64), I64(HEAD))
        past = builder.urem(first, align)
        words = builder.bitcast(block, I64.as_pointer())
        builder.store(I64(1), words)
        builder.store(builder.add(first, builder.sub(align, past)), builder.gep(words, [I64(3)]))
        builder.ret(block)
    done = ir.Function(module, ir.FunctionType(ir.VoidType(), [ADDRESS]), "NRT_MemInfo_call_dtor")
    builder = ir.IRBuilder(done.append_basic_block())
    builder.call(release, [done.args[0]])
    builder.ret_void()
    return module
