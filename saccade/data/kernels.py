"""The compiled functions of views, kept on disk as machine code: a start needs no compiler.

`compiled` makes them with numba, which takes about ten seconds; that happens once for each machine,
version of numba and state of their source. Afterwards llvmlite alone puts the machine code into
memory, in some hundredths of a second where importing numba takes half a second. Calls leave
Python's lock to other threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

HERE = Path(__file__).parent
SOURCES = ("compiled", "drawn", "fused", "kernels", "opcodes", "vector")

U8, I64, U64 = np.dtype(np.uint8), np.dtype(np.int64), np.dtype(np.uint64)
F32, F64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_)
INT = None  # an argument that is a number


class Kernel:
    """A function of `compiled`, of arrays and of whole numbers."""

    def __init__(self, name: str, *kinds: np.dtype | None) -> None:
        self.name, self.kinds = name, kinds
        self.function: Callable[..., int] | None = None

    def __call__(self, *arguments: np.ndarray | int) -> int:
        """What the function returns, or 0. In place of an array its address is as good.

        Raises ValueError for an array of another type, or one that is not contiguous.
        """
        function = self.function or self._load()
        words = [a if type(a) is int else self._word(k, a) for k, a in enumerate(arguments)]
        result = function(*words)
        if result < 0:
            raise RuntimeError(f"the compiled function {self.name} failed")
        return result

    def _word(self, k: int, value: np.ndarray | int) -> int:
        kind = self.kinds[k]
        if not isinstance(value, np.ndarray):
            return int(value)
        if value.dtype != kind:
            raise ValueError(f"{self.name}: argument {k} is of {value.dtype}, not {kind}")
        return addresses(value)[0]

    def _load(self) -> Callable[..., int]:
        integers = [ctypes.c_int64] * (1 + len(self.kinds))
        self.function = ctypes.CFUNCTYPE(*integers)(
            library().engine.get_function_address(self.name)
        )
        return self.function


def addresses(*arrays: np.ndarray) -> tuple[int, ...]:
    """Where the numbers of contiguous arrays are, which must outlive the use of this."""
    if not all(a.flags.c_contiguous for a in arrays):
        raise ValueError("kernels want contiguous arrays")
    return tuple(a.ctypes.data for a in arrays)


def _kernels(**kinds: tuple[np.dtype | None, ...]) -> tuple[Kernel, ...]:
    return tuple(Kernel(name, *each) for name, each in kinds.items())


# The arguments are described in `compiled`.
ALL = draw_flips, draw_colors, draw_boxes, crop, color, make_crops, make_views = _kernels(
    draw_flips=(U64, INT, F32, INT, BOOL),
    draw_colors=(U64, INT, INT, INT, I64, F32, INT, F32, I64, F32, INT),
    draw_boxes=(U64, I64, F32, INT, F64, I64, INT, INT, INT),
    crop=(U8, INT, INT, INT, I64, INT, INT, U8, INT),
    color=(U8, INT, INT, I64, F32, INT, F32, F32, F32),
    make_crops=(U8, INT, INT, INT, I64, BOOL, INT, INT, I64, BOOL, INT, U8),
    make_views=(
        *(U8, INT, INT, INT, I64, BOOL, INT, INT, I64, BOOL, INT, F32),
        *(I64, F32, INT, U8, F32, F32),
    ),
)


class Library:
    """Machine code in memory, as long as this object lives."""

    def __init__(self, code: bytes) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple().create_target_machine(jit=True)
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()


_lock = threading.Lock()
_loaded: list[Library] = []


def library() -> Library:
    """The compiled functions, from disk or compiled now."""
    with _lock:
        if not _loaded:
            _loaded.append(Library(_kept() or _made()))
        return _loaded[0]


def _kept() -> bytes | None:
    """Machine code from disk, if it is whole and for this machine and source."""
    for folder in _folders():
        try:
            data = (folder / f"kernels-{_key()}.o").read_bytes()
        except OSError:
            continue
        digest, code = data[:32], data[32:]
        if hashlib.sha256(code).digest() == digest:
            return code
    return None


def _made() -> bytes:
    """Machine code compiled now, and kept where that is possible."""
    if sys.stderr.isatty():
        print("saccade: compiling views for this machine, once", file=sys.stderr, flush=True)
    from . import compiled

    code = compiled.machine_code()
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.chmod(file.name, 0o644)  # for everyone who uses this installation
            os.replace(file.name, folder / f"kernels-{_key()}.o")
            break
        except OSError:
            continue
    return code


def _folders() -> tuple[Path, Path]:
    own = Path(os.environ.get("SACCADE_CACHE", "~/.cache/saccade")).expanduser()
    return HERE / "__pycache__", own / "kernels"


@functools.cache
def _key() -> str:
    """Of the machine, the compiler and the functions' source."""
    features = sorted(llvm.get_host_cpu_features().items())
    words = [llvm.get_default_triple(), llvm.get_host_cpu_name(), *map(str, features)]
    words += [version("numba"), version("llvmlite")]
    words += [(HERE / f"{name}.py").read_text() for name in SOURCES]
    return hashlib.blake2b("\n".join(words).encode(), digest_size=16).hexdigest()
