"""Writes packs: shards of re-encoded or raw pictures, resumed wherever a writer was killed."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ..recipe import Cache
from .bad import Bad
from .locks import locked
from .packed import (
    ENCODED,
    FILE,
    PIXELS,
    ROW,
    UNREADABLE,
    VERSION,
    WHOLE,
    Part,
    is_pack,
    read_header,
    rows_of,
    shards,
)
from .source import BadPicture, Source, open_source
from .threads import ordered

SHARD_BYTES = 1 << 28  # a shard is closed when it reaches this
SMALL = 64 * 64  # pixels: pictures up to this stay raw, as decoding would cost more than reading
SAMPLED = 8  # pictures whose bytes are part of the fingerprint
JPEG, JPEG_CHANNELS = b"\xff\xd8\xff", (1, 3)  # how its files begin, and what they hold
OURS = {"lock", "pack.tmp"}  # what a writer killed at its first moment leaves

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Report:
    """A finished pack: pictures, those that could not be read, and bytes written."""

    pictures: int
    unreadable: list[Bad]
    bytes: int


@dataclass(frozen=True, slots=True)
class _Record:
    kind: int
    name: bytes
    data: bytes
    label: int
    before: tuple[int, int] = (0, 0)  # height, width
    after: tuple[int, int, int] = (0, 0, 0)  # height, width, channels


def pack(
    data: str,
    cache: Cache,
    *,
    channels: int = 3,
    threads: int = 2,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Write all splits of the data into `cache.folder`, or go on where a writer was killed.

    One writer works at a time; others wait for it, and then find the pack finished.
    """
    folder = Path(cache.folder)
    _check(cache, channels)
    sources = _splits(data, channels)
    _check_wide(cache, sources)
    header = _header(data, cache, channels, sources)
    _refuse_others(folder, header)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        _refuse_others(folder, header)
        if not is_pack(folder):
            _write(folder / FILE, header)
        if not read_header(folder)["finished"]:
            total, before = sum(map(len, sources.values())), 0
            for side, source in sources.items():
                told = _offset(progress, before, total)
                _write_split(folder / side, source, cache, threads, shard_bytes, told)
                before += len(source)
            _write(folder / FILE, {**header, "finished": True})
    return _report(folder, list(sources))


def fingerprint(source: Source) -> str:
    """Tells data apart: names, labels, classes, and the bytes of some pictures."""
    digest = hashlib.sha256(repr((len(source), source.classes)).encode())
    digest.update(b"" if source.labels is None else source.labels.tobytes())
    for i in range(len(source)):
        digest.update(source.name(i).encode("utf-8", "surrogateescape") + b"\0")
    count = min(SAMPLED, len(source))
    for k in range(count):
        digest.update(_content(source, k * len(source) // count))
    return digest.hexdigest()[:32]


def _check(cache: Cache, channels: int) -> None:
    if cache.size < 0:
        raise ValueError(f"setting size={cache.size} is negative; 0 keeps pictures as they are")
    if not 1 <= cache.quality <= 100:
        raise ValueError(f"setting quality={cache.quality} is no JPEG quality; choose 1 to 100")
    if cache.format == "jpeg" and channels not in JPEG_CHANNELS:
        raise ValueError(f"setting format=jpeg has no {channels} channels; choose raw")


def _check_wide(cache: Cache, sources: dict[str, Source]) -> None:
    if any(s.wide for s in sources.values()) and (cache.size or cache.format != "auto"):
        raise ValueError(
            "settings size and format: pictures of other than 8 bits are packed as they are; "
            "use size 0 and format auto"
        )


def _splits(data: str, channels: int) -> dict[str, Source]:
    first = open_source(data, split="train", channels=channels)
    if not first.split:
        return {WHOLE: first}
    try:
        second = open_source(data, split="test", channels=channels)
    except ValueError:  # the data has training pictures only
        return {"train": first}
    return {"train": first, "test": second}


def _header(data: str, cache: Cache, channels: int, sources: dict[str, Source]) -> dict[str, Any]:
    parts = {
        side: Part(fingerprint(s), len(s), s.classes, s.labels is not None, s.skipped, s.wide)
        for side, s in sources.items()
    }
    settings = {k: v for k, v in asdict(cache).items() if k != "folder"} | {"channels": channels}
    return {
        "version": VERSION,
        "data": data,
        "settings": settings,
        "splits": {side: asdict(part) for side, part in parts.items()},
        "finished": False,
    }


def _refuse_others(folder: Path, header: dict[str, Any]) -> None:
    """Raise ValueError where the folder holds anything but this very pack."""
    strange = folder.exists() and (not folder.is_dir() or set(os.listdir(folder)) - OURS)
    if not is_pack(folder):  # looked for last, as another writer puts its header down first
        if strange:
            raise ValueError(f"setting cache: {folder} is not empty and no pack; choose another")
        return
    old = read_header(folder)
    remedy = "choose another folder, or remove it"
    for name, value in header["settings"].items():
        if old["settings"].get(name) != value:
            had = old["settings"].get(name)
            raise ValueError(
                f"setting cache: {folder} was packed with {name}={had}, not {value}; {remedy}"
            )
    if {k: v["fingerprint"] for k, v in old["splits"].items()} != {
        k: v["fingerprint"] for k, v in header["splits"].items()
    }:
        raise ValueError(
            f"setting cache: {folder} was packed from other pictures ({old['data']}) than "
            f"{header['data']} has now; {remedy}"
        )


def _write_split(
    folder: Path,
    source: Source,
    cache: Cache,
    threads: int,
    shard_bytes: int,
    progress: Progress | None,
) -> None:
    folder.mkdir(exist_ok=True)
    writer = _Writer(folder, shard_bytes)
    start, count = writer.written, len(source)
    stream = ordered(
        lambda i: _record(source, i, cache), range(start, count), threads=threads, ahead=4 * threads
    )
    try:
        for done, record in enumerate(stream, start + 1):
            writer.add(record)
            if progress:
                progress(done, count)
    finally:
        stream.close()
        writer.close()


class _Writer:
    """Appends records; what a killed writer left half done is cut off first."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.files = ExitStack()
        found = shards(folder)
        before = [len(rows_of(path)) for path in found[:-1]]
        self.number = max(len(found) - 1, 0)
        rows = rows_of(found[-1]) if found else np.empty(0, dtype=ROW)
        ends = rows["offset"] + rows["size"]
        here = found[-1].with_suffix(".bin").stat().st_size if found else 0
        whole = int(((rows["size"] > 0) & (ends <= here)).cumprod().sum())
        self.written = sum(before) + whole
        end = int(ends[whole - 1]) if whole else 0
        self._open(end, whole)

    def add(self, record: _Record) -> None:
        if self.end >= self.shard_bytes:
            self.close()
            self.number += 1
            self._open(0, 0)
        data = record.name + record.data
        row = np.zeros(1, dtype=ROW)
        row["offset"], row["size"], row["name"] = self.end, len(data), len(record.name)
        row["kind"], row["label"] = record.kind, record.label
        row["height"], row["width"] = record.before
        row["rows"], row["columns"], row["channels"] = record.after
        row["checksum"] = zlib.crc32(data)
        row["own"] = zlib.crc32(row.tobytes()[:-4])
        self.shard.write(data)
        self.index.write(row.tobytes())
        self.end += len(data)

    def close(self) -> None:
        for file in (self.shard, self.index):
            os.fsync(file.fileno())
        self.files.close()

    def _open(self, end: int, rows: int) -> None:
        self.end = end
        self.shard = self._at(".bin", end)
        self.index = self._at(".index", rows * ROW.itemsize)

    def _at(self, suffix: str, size: int) -> BinaryIO:
        """The file of the shard, cut to `size`, unbuffered so that writes keep their order."""
        path = self.folder / f"{self.number:05d}{suffix}"
        path.touch()
        file = self.files.enter_context(path.open("r+b", buffering=0))
        file.truncate(size)
        file.seek(size)
        return cast(BinaryIO, file)


def _record(source: Source, i: int, cache: Cache) -> _Record:
    """The work of a thread."""
    name = source.name(i).encode("utf-8", "replace")[: 1 << 15]
    label = -1 if source.labels is None else int(source.labels[i])
    try:
        picture = source.read(i)
        kind, data, after = _packed(source, i, picture, cache)
    except BadPicture as error:
        return _Record(UNREADABLE, name, error.reason.encode() or b"unreadable", label)
    return _Record(kind, name, data, label, (picture.shape[1], picture.shape[2]), after)


def _packed(
    source: Source, i: int, picture: Shaped[Tensor, "c h w"], cache: Cache
) -> tuple[int, bytes, tuple[int, int, int]]:
    c, h, w = picture.shape
    kept = not 0 < cache.size < min(h, w)  # pictures are never enlarged
    if source.wide:
        return ENCODED, _file(source, i), (h, w, c)
    small = h * w <= SMALL if kept else cache.size**2 <= SMALL
    if cache.format == "raw" or c not in JPEG_CHANNELS or (cache.format == "auto" and small):
        x = _smaller(picture, 0 if kept else cache.size)
        return PIXELS, x.permute(1, 2, 0).numpy().tobytes(), (x.shape[1], x.shape[2], c)
    if kept:
        data = _file(source, i)
        lossless = cache.format == "auto" and not cache.size
        if data and (lossless or data.startswith(JPEG)):
            return ENCODED, data, (h, w, c)
        if lossless:
            return PIXELS, picture.permute(1, 2, 0).numpy().tobytes(), (h, w, c)
    x = _smaller(picture, 0 if kept else cache.size)
    return ENCODED, _jpeg(x, cache.quality), (x.shape[1], x.shape[2], c)


def _smaller(picture: UInt8[Tensor, "c h w"], size: int) -> UInt8[Tensor, "c _ _"]:
    if not size:
        return picture
    return tv.resize(picture, [size], tv.InterpolationMode.BICUBIC, antialias=True)


def _jpeg(picture: UInt8[Tensor, "c h w"], quality: int) -> bytes:
    stream = BytesIO()
    array = picture.permute(1, 2, 0).squeeze(-1).numpy()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _file(source: Source, i: int) -> bytes:
    """The picture's file, no bytes where it is pixels already."""
    stored = source.stored(i)
    if isinstance(stored, Tensor):
        return b""
    return Path(stored).read_bytes() if isinstance(stored, str) else stored


def _content(source: Source, i: int) -> bytes:
    try:
        stored = source.stored(i)
        if isinstance(stored, Tensor):
            return stored.contiguous().numpy().tobytes()
        return _file(source, i)
    except (BadPicture, OSError):
        return b"unreadable"


def _write(path: Path, header: dict[str, Any]) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _offset(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)


def _report(folder: Path, sides: list[str]) -> Report:
    from .packed import from_pack

    split = {WHOLE: "train"}
    sources = [from_pack(folder, split.get(side, side), 3) for side in sides]  # type: ignore[arg-type]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Report(sum(map(len, sources)), [b for s in sources for b in s.bad], size)
