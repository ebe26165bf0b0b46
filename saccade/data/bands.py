"""Pictures of any number of channels and any precision, as float32: TIFF and .npy.

Unsigned integers become shares of their largest value, so 16 bits keep all their steps; other
numbers stay in their own unit. The channels are the last axis, or the first.
"""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
NUMPY = b"\x93NUMPY"


def is_array(file: str | bytes) -> bool:
    """Whether this is a file of numbers that 8-bit RGB cannot hold: .npy, or such a TIFF."""
    try:
        head = _head(file)
    except OSError:  # reading it will say why
        return False
    if head.startswith(NUMPY):
        return True
    if not head.startswith(TIFF) or not find_spec("tifffile"):
        return False
    shape, kind = _described(file)
    return len(shape) > 2 and (kind.itemsize > 1 or count(shape) not in (3, 4))


def holds(file: str | bytes) -> bool:
    """Whether this is TIFF or .npy."""
    return _head(file).startswith((NUMPY, *TIFF))


def decode(file: str | bytes, channels: int) -> Float32[Tensor, "c h w"]:
    """The picture's numbers. Raises ValueError where it has other channels, or NaN."""
    x = _array(file)
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or channels not in (x.shape[0], x.shape[2]):
        raise ValueError(
            f"shape {list(x.shape)} has {count(x.shape)} channels, not {channels}; "
            f"--set backbone.channels={count(x.shape)}"
        )
    if x.shape[2] == channels:
        x = x.transpose(2, 0, 1)
    top = np.iinfo(x.dtype).max if x.dtype.kind == "u" else 1
    wide = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    if not wide.isfinite().all():
        raise ValueError("holds NaN or infinity")
    return wide.div_(top)


def mode(file: str | bytes) -> str:
    """Type of number and channels as stored, such as `uint16 x 12`."""
    shape, kind = _described(file)
    return f"{kind.name} x {count(shape)}"


def channels(mode: str) -> int:
    """What `mode` says of them."""
    return int(mode.rpartition(" x ")[2])


def count(shape: tuple[int, ...]) -> int:
    """Channels of an array of this shape: its shorter end."""
    return min(shape[0], shape[-1]) if len(shape) > 2 else 1


def _array(file: str | bytes) -> Shaped[np.ndarray, "*shape"]:
    if _head(file).startswith(NUMPY):
        return np.load(_stream(file), allow_pickle=False)
    with _tiff(file) as tiff:
        return tiff.asarray()


def _described(file: str | bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type from the header, without the numbers."""
    if _head(file).startswith(NUMPY):
        stream = _stream(file)
        with open(stream, "rb") if isinstance(stream, str) else stream as opened:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0
            if version > (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, kind = read(opened)
            return shape, kind
    with _tiff(file) as tiff:
        return tiff.series[0].shape, tiff.series[0].dtype


def _tiff(file: str | bytes) -> Any:
    try:
        import tifffile
    except ImportError:
        raise ValueError("needs tifffile; pip install 'saccade[bands]'") from None
    return tifffile.TiffFile(_stream(file))


def _head(file: str | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:8]
    with open(file, "rb") as opened:
        return opened.read(8)


def _stream(file: str | bytes) -> str | BytesIO:
    return BytesIO(file) if isinstance(file, bytes) else file
