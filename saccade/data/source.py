"""Where pictures come from: one interface over folders, lists, tables, arrays and datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from ..config import suggest
from . import decode
from .decode import MODES, BadPicture

__all__ = ["BadPicture", "Source", "Split", "Subset", "open_source"]

Split = Literal["train", "test"]
LISTS = (".txt", ".csv", ".tsv")


class Source(ABC):
    """Pictures by number, with labels where the data has them."""

    channels: int
    classes: tuple[str, ...]  # () without labels
    labels: Int64[np.ndarray, "n"] | None  # -1 for an entry that has none
    split: Literal["train", "test", ""]  # "" where the data has no splits
    skipped: int  # files passed over because they are not called pictures
    resident: bool = False  # all pictures are in memory, decoded
    wide: bool = False  # pictures keep all their bits, as float32: see `bands`

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def stored(self, i: int) -> str | bytes | Shaped[Tensor, "k h w"]:
        """A file's path, a file's bytes, or pixels that need no decoding, of any channels.

        Raises BadPicture. Threads may call it at the same time.
        """

    @abstractmethod
    def name(self, i: int) -> str:
        """Path or id, for reports."""

    def read(self, i: int) -> Shaped[Tensor, "c h w"]:
        """Decoded and upright, in `channels`: uint8, or float32 where wide. Raises BadPicture."""
        return decode.decode(self.stored(i), self.name(i), self.channels, wide=self.wide)

    def mode(self, i: int) -> str:
        """The pixel format as stored, before conversion to `channels`. Raises BadPicture."""
        return decode.mode(self.stored(i), self.name(i))


class Subset(Source):
    """Some pictures of another source, in the order given."""

    def __init__(self, source: Source, rows: Int64[np.ndarray, "m"]) -> None:
        self.channels, self.classes = source.channels, source.classes
        self.split, self.skipped = source.split, source.skipped
        self.resident, self.wide = source.resident, source.wide
        self.labels = None if source.labels is None else source.labels[rows]
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def stored(self, i: int) -> str | bytes | Shaped[Tensor, "k h w"]:
        return self.source.stored(int(self.rows[i]))

    def name(self, i: int) -> str:
        return self.source.name(int(self.rows[i]))


def open_source(data: str, *, split: Split = "train", channels: int = 3, limit: int = 0) -> Source:
    """The source that `data` names; `limit` keeps that many pictures, evenly spaced.

    Data without splits comes whole whatever `split` says: its own `split` is then "".
    """
    if channels < 1:
        raise ValueError(f"channels={channels} is not supported; choose 1 or more")
    if limit < 0:
        raise ValueError(f"limit={limit} is negative; 0 means all")
    source = _open(data, split, channels)
    if channels not in MODES and not source.wide:
        raise ValueError(f"channels={channels} is for folders and lists of TIFF and .npy files")
    if not len(source):
        raise ValueError(f"data {data} holds no pictures{_others(source)}")
    if 0 < limit < len(source):
        source = Subset(source, np.arange(limit, dtype=np.int64) * len(source) // limit)
    return source


def _open(data: str, split: Split, channels: int) -> Source:
    # Imported where used: pyarrow and torchvision take their time.
    from . import arrays, folder, hf, packed, shards, stream, table

    kind, _, rest = data.partition(":")
    path = Path(data)
    suffix = path.suffix.lower()
    if data == "demo":
        return table.demo(split, channels)
    if kind == "cifar10" and (rest or not path.exists()):
        return arrays.cifar10(rest, split, channels)
    if kind == "torchvision":
        return arrays.torchvision(rest, split, channels)
    if kind == "hf":
        return hf.from_hub(rest, split, channels)
    if stream.is_stream(data):
        raise ValueError(f"data {data} is a stream, which can only be trained on; download it")
    if kind in ("pipe", "s3", "gs"):
        raise ValueError(f"data {data}: nothing is run for data; give files or http(s) URLs")
    if path.is_dir() and packed.is_pack(path):
        return packed.from_pack(path, split, channels)
    if found := shards.local(data):
        return shards.from_files(found, split, channels)
    if path.is_dir():
        return folder.from_folder(path, split, channels)
    if not path.exists():
        known = ("demo", "cifar10", "torchvision:NAME")
        raise ValueError(f"data {data!r}: no such file or folder{suggest(kind, known)}")
    if suffix == ".npz":
        return arrays.from_npz(path, split, channels)
    if suffix == ".parquet":
        return table.from_parquet(path, channels)
    if suffix in LISTS:
        return folder.from_list(path, channels)
    if decode.is_picture(path.name):
        return folder.Files(path.parent, [path.name], channels)
    raise ValueError(
        f"data {data}: cannot read a {suffix or 'nameless'} file; give a folder, a picture, "
        ".txt, .csv, .tsv, .parquet or .npz"
    )


def _others(source: Source) -> str:
    return f", only {source.skipped} other files" if source.skipped else ""
