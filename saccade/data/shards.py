"""Data in several files: how they are named, and their pictures as one source."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from .decode import is_picture
from .folder import TEST_FOLDERS
from .source import Source, Split
from .tar import Tar

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
WILD = re.compile(r"[*?\[]")
KINDS = (".tar", ".parquet")
TARS = (".tar", ".tar.gz", ".tgz")


def expand(spec: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` spelled out."""
    found = BRACES.search(spec)
    if found is None:
        return [spec]
    ends = RANGE.fullmatch(found[1])
    if ends is None:
        middles = found[1].split(",")
    else:
        middles = [f"{k:0{len(ends[1])}d}" for k in range(int(ends[1]), int(ends[2]) + 1)]
    head, tail = spec[: found.start()], spec[found.end() :]
    return [path for middle in middles for path in expand(f"{head}{middle}{tail}")]


def is_url(spec: str) -> bool:
    return spec.startswith(("http://", "https://"))


def paths(spec: str) -> list[str]:
    """Files or URLs that a name with braces or wildcards means, in order, each there."""
    found: list[str] = []
    for path in expand(spec):
        here = sorted(glob.glob(path)) if WILD.search(path) and not is_url(path) else [path]
        if not here or not (is_url(here[0]) or Path(here[0]).is_file()):
            raise ValueError(f"data {spec}: no file {path}; check the numbers in the braces")
        found += here
    return found


def is_tar(path: str) -> bool:
    return path.lower().endswith(TARS)


def local(data: str) -> list[str]:
    """The tars or parquet files that `data` names: a folder of them, or a name that means some."""
    root = Path(data)
    if root.is_dir():
        names = []
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or is_picture(entry.name):
                    return []  # a folder of pictures, with a tar beside them perhaps
                names.append(entry.name)
        found = {kind: [str(root / n) for n in sorted(names) if n.endswith(kind)] for kind in KINDS}
        return found[".tar"] or found[".parquet"]
    if not data.endswith(KINDS):
        return []
    if root.is_file():
        return [data]
    return paths(data) if BRACES.search(data) or WILD.search(data) else []


def from_files(files: Sequence[str], split: Split, channels: int) -> Source:
    """The pictures of local tars or parquet files."""
    from .table import Groups, from_parquet  # pyarrow takes its time

    chosen, side = of_split(files, split)
    groups = Groups()
    sources = [
        from_parquet(Path(path), channels, groups)
        if path.endswith(".parquet")
        else Tar(path, channels)
        for path in chosen
    ]
    return Joined(sources, side) if side or len(sources) > 1 else sources[0]


def of_split(files: Sequence[str], split: Split) -> tuple[list[str], Split | None]:
    """The files of a split where their names begin with train and test (or val), else all."""

    def side(path: str) -> str:
        word = re.match(r"[a-z]+", Path(path).name.lower())
        return word[0] if word else ""

    sides = {side(path) for path in files}
    tests = [name for name in TEST_FOLDERS if name in sides]
    if "train" not in sides or not tests:
        return list(files), None
    wanted = "train" if split == "train" else tests[0]
    return [path for path in files if side(path) == wanted], split


class Joined(Source):
    """The pictures of several sources, one after the other."""

    def __init__(self, sources: Sequence[Source], split: Split | None = None) -> None:
        self.sources = sources
        self.channels, self.split = sources[0].channels, split or ""
        self.skipped = sum(s.skipped for s in sources)
        self.ends = np.cumsum([len(s) for s in sources])
        labeled = any(s.labels is not None for s in sources)
        self.classes = _classes(sources) if labeled else ()
        number = {name: k for k, name in enumerate(self.classes)}
        self.labels = np.concatenate([_renumbered(s, number) for s in sources]) if labeled else None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        source, k = self._at(i)
        return source.stored(k)

    def name(self, i: int) -> str:
        source, k = self._at(i)
        return source.name(k)

    def _at(self, i: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self.ends, i, side="right"))
        return self.sources[part], i - (int(self.ends[part - 1]) if part else 0)


def _classes(sources: Sequence[Source]) -> tuple[str, ...]:
    """Class names of all sources: whole numbers up to the largest, words sorted."""
    names = {name for s in sources for name in s.classes}
    if all(name.isdigit() for name in names):
        return tuple(str(k) for k in range(max(map(int, names), default=-1) + 1))
    if all(s.classes == sources[0].classes for s in sources):
        return sources[0].classes
    return tuple(sorted(names))


def _renumbered(source: Source, number: dict[str, int]) -> np.ndarray:
    if source.labels is None:
        return np.full(len(source), -1, dtype=np.int64)
    own = np.array([*(number[name] for name in source.classes), -1], dtype=np.int64)
    return own[source.labels]  # -1 stays -1: the last entry
