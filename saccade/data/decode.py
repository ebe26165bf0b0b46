"""A picture file as 8-bit pixels: oriented by its EXIF tag, first frame, wanted channels.

Common JPEGs are decoded by libjpeg-turbo through simplejpeg, which can do so at 1/2, 1/4 or 1/8 of
their size for a part of the time; Pillow reads all else, and decides which files are bad.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from . import bands, jpeg
from .jpeg import ORIENTATION

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels: the mode Pillow converts to
PHOTOS = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "jp2"}
SUFFIXES = PHOTOS | {"bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "tga"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPicture(Exception):  # noqa: N818 (a fact of the data, not an error of the run)
    """A picture that cannot be read, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of a picture."""
    return name.rpartition(".")[2].lower() in SUFFIXES


def decode(
    file: str | bytes | Shaped[Tensor, "k h w"], name: str, channels: int, *, wide: bool = False
) -> Shaped[Tensor, "c h w"]:
    """Pixels of a path, of a file's bytes, or of other pixels. Raises BadPicture.

    uint8; where `wide`, float32 with all the bits that TIFF and .npy files have.
    """
    return shrunk(file, name, channels, lambda height, width: 1, wide=wide)[0]


def shrunk(
    file: str | bytes | Shaped[Tensor, "k h w"],
    name: str,
    channels: int,
    shrink: Callable[[int, int], int],
    *,
    wide: bool = False,
) -> tuple[Shaped[Tensor, "c _ _"], int]:
    """Pixels, and how many times smaller than the picture they are in height and width.

    `shrink` is told the picture's height and width, and answers how many times smaller it may be
    decoded: 1, 2, 4 or 8. Not every file can be.
    """
    if isinstance(file, Tensor):
        found = file if len(file) == channels else converted(file, channels)
    else:
        fast = _jpeg(file, shrink) if channels == 3 and not wide else None
        if fast is not None:
            return fast
        found = _any(file, name, channels, wide)
    shrink(found.shape[1], found.shape[2])
    return found, 1


def _jpeg(
    file: str | bytes, shrink: Callable[[int, int], int]
) -> tuple[UInt8[Tensor, "3 _ _"], int] | None:
    """None where the file is no common JPEG, or is damaged."""
    try:
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
    except OSError:
        return None
    head = jpeg.header(data)
    if head is None or head.height * head.width > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    size = (head.height, head.width)
    scale = shrink(*(reversed(size) if head.orientation >= 5 else size))
    height, width = (-(-side // scale) for side in size)
    try:
        array = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return torch.from_numpy(_upright(array, head.orientation)).permute(2, 0, 1), scale


def _upright(array: UInt8[np.ndarray, "_ _ c"], orientation: int) -> UInt8[np.ndarray, "_ _ c"]:
    """The pixels as they are looked at, by EXIF's orientation."""
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _any(file: str | bytes, name: str, channels: int, wide: bool) -> Shaped[Tensor, "c h w"]:
    """Any file but a common JPEG; 8-bit pixels lie in channels-last memory."""
    try:
        if wide and bands.holds(file):
            return bands.decode(file, channels)
        if channels not in MODES:
            raise ValueError(f"neither TIFF nor .npy, so it has no {channels} channels")
        if wide:
            return decode(file, name, channels).float().mul_(1 / 255)
        with Image.open(_stream(file), formats=_formats()) as picture:
            return pixels(picture, channels)
    except BadPicture:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise BadPicture(name, _reason(error, file)) from error


def mode(file: str | bytes | Shaped[Tensor, "k h w"], name: str) -> str:
    """The pixel format written in the file, such as RGB, L, CMYK, I;16. Raises BadPicture."""
    if isinstance(file, Tensor):
        return MODES.get(len(file), f"{str(file.dtype).removeprefix('torch.')} x {len(file)}")
    try:
        if bands.is_array(file):
            return bands.mode(file)
        with Image.open(_stream(file), formats=_formats()) as picture:
            return picture.mode
    except Exception as error:
        raise BadPicture(name, _reason(error, file)) from error


def pixels(picture: Image.Image, channels: int) -> UInt8[Tensor, "c h w"]:
    """Pixels of an opened picture; alpha is dropped, not blended, as torchvision users expect."""
    turn = TURNS.get(_orientation(picture))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB, Pillow warns about the transparency
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _eight_bit(picture)
    if picture.mode != MODES[channels]:
        picture = picture.convert(MODES[channels])
    if turn is not None:
        picture = picture.transpose(turn)
    array = torch.from_numpy(np.array(picture))
    return array.reshape(picture.height, picture.width, channels).permute(2, 0, 1)


def converted(x: UInt8[Tensor, "k h w"], channels: int) -> UInt8[Tensor, "c h w"]:
    """Pixels with as many channels as wanted."""
    array = x.permute(1, 2, 0).contiguous().numpy()
    return pixels(Image.fromarray(array[..., 0] if len(x) == 1 else array), channels)


def _stream(file: str | bytes) -> str | BytesIO:
    return BytesIO(file) if isinstance(file, bytes) else file


@cache
def _formats() -> tuple[str, ...]:
    """Formats Pillow may try: none that runs another program on the file, as EPS does."""
    Image.init()
    common = ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF"]
    known = [*common, "PPM", "AVIF", "JPEG2000", "TGA"]
    return tuple(name for name in known if name in Image.OPEN)


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return 1  # a broken EXIF block says nothing about the pixels


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit integers and floats in [0, 1], scaled to 0..255 and rounded."""
    wide = np.array(picture).astype(np.float64)
    top = 1.0 if picture.mode == "F" else 65535.0
    if not (wide.min() >= 0 and wide.max() <= top):
        raise ValueError(f"pixels of mode {picture.mode} outside 0..{top:g}")
    return Image.fromarray(np.rint(wide * (255 / top)).astype(np.uint8))


def _reason(error: Exception, file: str | bytes) -> str:
    if isinstance(file, str) and os.path.isdir(file):
        return "is a directory"
    if isinstance(error, UnidentifiedImageError):
        size = len(file) if isinstance(file, bytes) else os.path.getsize(file)
        return "not a picture" if size else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
