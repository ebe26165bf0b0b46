"""WebDataset tars: members that share a key are a sample, told apart by what follows its dot.

A local tar is read once for the places of its pictures; from then on they are read at random.
Nothing is ever extracted: names of members are only shown.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from .decode import is_picture
from .folder import LABEL_COLUMNS, numbered
from .source import BadPicture, Source

LABEL_BYTES = 1 << 20  # a label file may have at most


@dataclass(frozen=True, slots=True)
class Member:
    """A picture in a tar: where its bytes are, and its label as text, empty without one."""

    name: str
    offset: int
    size: int
    label: str


class Tar(Source):
    """The pictures of one local tar."""

    def __init__(self, path: str, channels: int) -> None:
        self.path, self.channels = path, channels
        self.split, self.skipped = "", 0
        self.members: list[Member] = []
        for member in self._index():
            if member is None:
                self.skipped += 1
            else:
                self.members.append(member)
        self.classes, self.labels = _labels([m.label for m in self.members])

    def __len__(self) -> int:
        return len(self.members)

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        member = self.members[i]
        with open(self.path, "rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise BadPicture(self.name(i), "cut off")
        return data

    def name(self, i: int) -> str:
        return f"{Path(self.path).name}/{self.members[i].name}"

    def _index(self) -> Iterator[Member | None]:
        """A member for each sample, None where it has no picture."""
        try:
            with tarfile.open(self.path, "r:") as tar:
                for _, group in groupby(_files(tar), key=lambda m: key_of(m.name)):
                    members = list(group)
                    pictures = [m for m in members if is_picture(m.name)]
                    if not pictures:
                        yield None
                        continue
                    best = min(pictures, key=lambda m: len(m.name))  # x.jpg before x.depth.png
                    label = next(filter(None, (_label(tar, m) for m in members)), "")
                    yield Member(plain(best.name), best.offset_data, best.size, label)
        except tarfile.TarError as error:
            raise ValueError(f"data {self.path} is no whole tar file: {error}") from None


def pictures(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the picture of each sample, in order, of a tar that cannot be rewound."""
    for _, group in groupby(_files(tar), key=lambda m: key_of(m.name)):
        best: tuple[str, bytes] | None = None
        for member in group:
            shorter = best is None or len(member.name) < len(best[0])
            if is_picture(member.name) and shorter:
                best = (member.name, _read(tar, member))
        if best:
            yield plain(best[0]), best[1]


def key_of(name: str) -> str:
    """The path of a member up to the first dot of its file name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def plain(name: str) -> str:
    """A name that is safe to print."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        vars(tar)["members"] = []  # or a large tar would keep every header in memory
        if member.isfile() and not member.issparse():
            yield member


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # only files come here
    return file.read()


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """The text of NAME.cls, or a label column of NAME.json; empty where there is none."""
    kind = Path(member.name).suffix
    if kind not in (".cls", ".json") or member.size > LABEL_BYTES:
        return ""
    text = _read(tar, member).decode("utf-8", "replace").strip()
    if kind == ".cls":
        return text
    try:
        values = json.loads(text)
    except ValueError:
        return ""
    columns = {k.lower(): v for k, v in values.items()} if isinstance(values, dict) else {}
    found = [columns[name] for name in (*LABEL_COLUMNS, "cls") if name in columns]
    return str(found[0]) if found and isinstance(found[0], str | int) else ""


def _labels(texts: list[str]) -> tuple[tuple[str, ...], np.ndarray | None]:
    if not any(texts):
        return (), None
    labels = np.full(len(texts), -1, dtype=np.int64)
    known = np.array([bool(text) for text in texts])
    classes, labels[known] = numbered([text for text in texts if text])
    return classes, labels
