"""Pictures packed into a few large files, read by memory map, each record with its checksum.

A pack is a folder: `pack.json` says what it holds, and each split has a folder of shards. A shard
is `00000.bin`, its records end to end, and `00000.index`, a row of fixed size for each. A record is
the picture's name, then its bytes. Its row is written after it, so that whenever a writer is
killed, the whole rows are the pictures that can be read: row k belongs to picture k of the data.
"""

from __future__ import annotations

import json
import mmap
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .bad import Bad
from .source import BadPicture, Source, Split

FILE = "pack.json"
WHOLE = "all"  # folder of data without splits
VERSION = 1
UNREADABLE, ENCODED, PIXELS = 0, 1, 2  # what a record holds: a reason, a file, 8-bit [h, w, c]
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the record in its shard
        ("size", "<u4"),  # of the record, name and all
        ("name", "<u2"),  # bytes of the name
        ("kind", "u1"),
        ("channels", "u1"),  # of pixels
        ("height", "<u4"),  # of the picture before packing
        ("width", "<u4"),
        ("rows", "<u4"),  # of the packed picture
        ("columns", "<u4"),
        ("label", "<i4"),  # -1: none
        ("checksum", "<u4"),  # CRC-32 of the record
        ("own", "<u4"),  # CRC-32 of this row up to here
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """What `pack.json` says of a split."""

    fingerprint: str
    pictures: int
    classes: tuple[str, ...]
    labeled: bool
    skipped: int
    wide: bool


def is_pack(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_header(folder: Path) -> dict[str, Any]:
    """The content of `pack.json`. Raises ValueError where it is none."""
    try:
        header = json.loads((folder / FILE).read_text(encoding="utf-8"))
        version = header["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"data {folder / FILE} cannot be read ({error}); pack again") from None
    if version != VERSION:
        raise ValueError(f"data {folder} is a pack of version {version}, not {VERSION}; pack again")
    return header


def shards(folder: Path) -> list[Path]:
    """The index files of a split, in order."""
    return sorted(folder.glob("*.index"))


def rows_of(index: Path) -> np.ndarray:
    """The whole rows of an index file; of a broken row nothing but `kind` may be used."""
    data = index.read_bytes()
    rows = np.frombuffer(data[: len(data) // ROW.itemsize * ROW.itemsize], dtype=ROW).copy()
    body = ROW.itemsize - 4
    starts = range(0, len(rows) * ROW.itemsize, ROW.itemsize)
    own = np.array([zlib.crc32(data[at : at + body]) for at in starts], dtype=np.uint32)
    broken = own != rows["own"]
    rows[broken] = np.zeros((), dtype=ROW)
    rows["label"][broken] = -1
    return rows


class Packed(Source):
    """The pictures of one split of a pack that have been written so far and could be read."""

    def __init__(self, folder: Path, part: Part, split: Split | None, channels: int) -> None:
        self.channels, self.classes = channels, part.classes
        self.split, self.skipped = split or "", part.skipped
        self.wide = part.wide
        self.paths = [path.with_suffix(".bin") for path in shards(folder)]
        tables = [rows_of(path) for path in shards(folder)]
        self.maps = [_map(path) for path in self.paths]
        table = np.concatenate(tables) if tables else np.empty(0, dtype=ROW)
        shard = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
        place = np.concatenate([np.arange(len(t)) for t in tables] or [np.empty(0, dtype=np.int64)])
        good = table["kind"] != UNREADABLE
        self.written = len(table)
        self.rows, self.shard, self.place = table[good], shard[good], place[good]
        self.bad = [
            self._why(row, int(s), int(k))
            for row, s, k in zip(table[~good], shard[~good], place[~good], strict=True)
        ]
        self.labels: Int64[np.ndarray, "n"] | None = (
            self.rows["label"].astype(np.int64) if part.labeled else None
        )

    def __len__(self) -> int:
        return len(self.rows)

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        row = self.rows[i]
        record = self._record(row, int(self.shard[i]))
        if zlib.crc32(record) != row["checksum"]:
            raise BadPicture(self.name(i), self._damage(int(self.shard[i]), int(self.place[i])))
        data = record[int(row["name"]) :]
        if row["kind"] == ENCODED:
            return data
        shape = (int(row["rows"]), int(row["columns"]), int(row["channels"]))
        pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return pixels.view(shape).permute(2, 0, 1)

    def name(self, i: int) -> str:
        row = self.rows[i]
        start = int(row["offset"])
        return _text(self.maps[self.shard[i]][start : start + int(row["name"])])

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of the picture before it was packed."""
        return int(self.rows[i]["height"]), int(self.rows[i]["width"])

    def _record(self, row: np.void, shard: int) -> bytes:
        return self.maps[shard][int(row["offset"]) : int(row["offset"]) + int(row["size"])]

    def _why(self, row: np.void, shard: int, place: int) -> Bad:
        record = self._record(row, shard)
        if not row["size"] or zlib.crc32(record) != row["checksum"]:
            return Bad(f"{self.paths[shard].name}[{place}]", self._damage(shard, place))
        length = int(row["name"])
        return Bad(_text(record[:length]), _text(record[length:]))

    def _damage(self, shard: int, place: int) -> str:
        return f"damaged: record {place} of {self.paths[shard]} differs from its checksum"


def from_pack(folder: Path, split: Split, channels: int) -> Packed:
    """The pack's pictures; of one that is still being written, those that are there."""
    header = read_header(folder)
    sides = header["splits"]
    side = WHOLE if WHOLE in sides else split
    if side not in sides:
        raise ValueError(f"data {folder} holds no {split} pictures, only {', '.join(sides)}")
    part = Part(**{**sides[side], "classes": tuple(sides[side]["classes"])})
    source = Packed(folder / side, part, None if side == WHOLE else split, channels)
    if not header["finished"]:
        at = f"{source.written} of {part.pictures} pictures"
        warnings.warn(f"the pack {folder} is not finished: {at}", stacklevel=2)
    return source


def _map(path: Path) -> mmap.mmap | bytes:
    """The shard, as far as it is written: an empty file cannot be mapped."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
