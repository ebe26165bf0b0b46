"""A picture file as 8-bit pixels: oriented by its EXIF tag, first frame, wanted channels."""

from __future__ import annotations

import os
import struct
from functools import cache
from io import BytesIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels: the mode Pillow converts to
PHOTOS = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "jp2"}
SUFFIXES = PHOTOS | {"bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "tga"}
ORIENTATION = 0x0112  # EXIF tag
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


def decode(file: str | bytes, name: str, channels: int) -> UInt8[Tensor, "c h w"]:
    """Pixels of a path or of a file's bytes, in channels-last memory. Raises BadPicture."""
    try:
        with Image.open(_stream(file), formats=_formats()) as picture:
            return pixels(picture, channels)
    except Exception as error:  # a decoder may raise anything on a broken file
        raise BadPicture(name, _reason(error, file)) from error


def mode(file: str | bytes, name: str) -> str:
    """The pixel format written in the file, such as RGB, L, CMYK, I;16. Raises BadPicture."""
    try:
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
