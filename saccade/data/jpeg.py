"""What a JPEG file says of itself before its pixels."""

from __future__ import annotations

import struct
from dataclasses import dataclass

ORIENTATION = 0x0112  # EXIF tag
SHORT = 3  # EXIF's type of 16-bit numbers
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # frames libjpeg-turbo decodes
APP1, SCAN = 0xE1, 0xDA
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


@dataclass(frozen=True, slots=True)
class Header:
    height: int  # as stored
    width: int
    orientation: int  # EXIF's, 1 to 8


def header(data: bytes) -> Header | None:
    """None for what is no JPEG of 8-bit gray or three colors, or is cut off before its pixels."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, orientation = 2, 1
    try:
        while True:
            while data[at] == 0xFF:
                at += 1
            marker, at = data[at], at + 1
            if marker in ALONE:
                continue
            (length,) = struct.unpack_from(">H", data, at)
            if marker in (BASELINE, EXTENDED, PROGRESSIVE):
                bits, height, width, components = struct.unpack_from(">BHHB", data, at + 2)
                common = bits == 8 and components in (1, 3) and height and width
                return Header(height, width, orientation) if common else None
            if marker == SCAN or (0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                return None
            if marker == APP1 and data[at + 2 : at + 8] == b"Exif\0\0":
                orientation = _orientation(data[at + 8 : at + length])
            at += length
    except (IndexError, struct.error):
        return None


def _orientation(exif: bytes) -> int:
    """Of a TIFF header; 1 where it has none, or is broken."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for place in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == ORIENTATION and kind == SHORT:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
