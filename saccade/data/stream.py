"""Pictures that can only be read in order: tars by URL, compressed tars, streamed datasets.

The shards are counted once; then the order of an epoch is arithmetic. Shards are shuffled and
their pictures, laid end to end, cut into equal lanes. Each lane is shuffled within a window: the
picture at place p moves to where p + window * u sorts, u in [0, 1), so at most `window` pictures
are held. A batch takes the same number of rows from each lane. Thus an epoch is the same on any
number of ranks and threads, each rank reads the shards of its own lanes, and a resumed run skips
whole shards and reads on in the middle of the next.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from ..core import View, Views
from ..errors import RunError
from ..nn.random import fold, keys, permutation, salt
from ..recipe import Normalize
from . import hf, shards, tar
from .loader import ViewLoader
from .locks import locked
from .source import BadPicture, Source
from .table import from_parquet

LANES = 8  # shards read at the same time, over all ranks
SPARE = 16  # pictures of a lane's first shard that stand in for unreadable ones
TRIES, PAUSE = 5, 1.0  # attempts without progress on a connection, seconds before the first
TIMEOUT = 60.0  # seconds
PREFIX = "stream:"

Progress = Callable[[int, int], None]


class Shards(ABC):
    """What a stream is read from."""

    names: list[str]

    @abstractmethod
    def read(self, shard: int) -> Iterator[tuple[str, str | bytes]]:
        """Name and file of each picture of a shard, from its beginning."""


class Tars(Shards):
    """Tars by URL, read as they arrive, or compressed."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def read(self, shard: int) -> Iterator[tuple[str, str | bytes]]:
        """A broken connection is opened again, and what was already seen is skipped."""
        name, seen, tries = self.names[shard], 0, 0
        while True:
            try:
                with _opened(name) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                    for picture in islice(tar.pictures(archive), seen, None):
                        yield picture
                        seen, tries = seen + 1, 0
                    while file.read(1 << 20):  # to its end: a short answer is found there
                        pass
                return
            except (OSError, EOFError, HTTPException, tarfile.TarError) as error:
                tries += 1
                if tries == TRIES or not shards.is_url(name):
                    raise RunError(f"data: {name} cannot be read on: {error}") from error
                time.sleep(PAUSE * 2 ** (tries - 1))


class Sources(Shards):
    """Shards that are sources, read in order."""

    def __init__(self, names: list[str], sources: list[Source]) -> None:
        self.names, self.sources = names, sources

    def read(self, shard: int) -> Iterator[tuple[str, str | bytes]]:
        source = self.sources[shard]
        for i in range(len(source)):
            try:
                stored = source.stored(i)
            except BadPicture:
                stored = b""  # an unreadable picture must not end the shard
            assert not isinstance(stored, Tensor)  # tars and tables hold files
            yield source.name(i), stored


class Hub(Shards):
    """A streamed dataset of Hugging Face."""

    def __init__(self, title: str, dataset: Any) -> None:
        self.title = title
        self.column, self.dataset = hf.encoded(title, dataset)
        self.names = [f"{title}[{k}]" for k in range(self.dataset.num_shards)]

    def read(self, shard: int) -> Iterator[tuple[str, str | bytes]]:
        return hf.shard(self.dataset, self.column, shard, self.title)


@dataclass(frozen=True, slots=True)
class Plan:
    """An epoch: the pictures of its batches end to end, and those of each lane as they come."""

    order: Int64[Tensor, "n"]
    lanes: Int64[Tensor, "l m"]


def plan(
    counts: Int64[Tensor, "s"], *, batch_size: int, window: int, seed: int, epoch: int
) -> Plan:
    """The order of an epoch; pictures that fill no batch are left out, others each time."""
    used = int(counts.sum()) // batch_size * batch_size
    starts = counts.cumsum(0) - counts
    pieces = [
        torch.arange(int(starts[s]), int(starts[s] + counts[s]))
        for s in permutation(len(counts), seed, epoch).tolist()
    ]
    n = max(k for k in range(1, LANES + 1) if k <= len(counts) and batch_size % k == 0)
    lanes = torch.cat(pieces)[:used].view(n, used // n)
    key = fold(keys(seed, epoch, torch.arange(used)), salt("window"))
    u = ((key >> 11) & ((1 << 53) - 1)).double() / (1 << 53)
    place = torch.arange(used // n) + u.view_as(lanes) * (window / n)
    mixed = lanes.gather(1, place.argsort(dim=1, stable=True))  # [n, used / n]
    order = mixed.view(n, -1, batch_size // n).transpose(0, 1).reshape(used)
    return Plan(order, lanes)


class Stream(Source):
    """Pictures of shards, numbered from the first shard's first; each is given once an epoch."""

    labels, classes, split, skipped = None, (), "", 0

    def __init__(self, source: Shards, counts: list[int], channels: int) -> None:
        self.shards, self.counts = source, torch.tensor(counts)
        self.channels = channels
        self.ends = np.cumsum(counts)
        self.lanes: list[_Lane] = []
        self.lane_of = np.empty(0, dtype=np.int8)
        self.spare: dict[int, str | bytes] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        return self.spare.get(i) or self.lanes[self.lane_of[i]].take(i)

    def name(self, i: int) -> str:
        shard, place = self.at(i)
        return f"{self.shards.names[shard]}[{place}]"

    def other(self, i: int, draw: int) -> int:
        """A picture to read in place of i: one of the first of the lane's first shard."""
        spare = self.lanes[self.lane_of[i]].spares()
        self.spare |= spare
        return list(spare)[draw % len(spare)]

    def at(self, i: int) -> tuple[int, int]:
        """The shard of a picture, and its place there."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        return shard, i - (int(self.ends[shard - 1]) if shard else 0)

    @contextmanager
    def epoch(self, lanes: Int64[Tensor, "l m"], wanted: Int64[Tensor, "k"]) -> Iterator[None]:
        """Makes the wanted pictures readable, in about the order in which the lanes have them."""
        mask = np.zeros(len(self), dtype=bool)
        mask[wanted.numpy()] = True
        self.lane_of = np.zeros(len(self), dtype=np.int8)
        for k, lane in enumerate(lanes.numpy()):
            self.lane_of[lane] = k
        self.lanes = [_Lane(self, lane, mask) for lane in lanes.numpy()]
        self.spare = {}
        try:
            yield
        finally:
            for lane in self.lanes:
                lane.reader.close()


class _Lane:
    """A part of an epoch, read from its first wanted picture on."""

    def __init__(
        self, stream: Stream, numbers: Int64[np.ndarray, "m"], wanted: Bool[np.ndarray, "n"]
    ) -> None:
        self.stream, self.numbers, self.wanted = stream, numbers, wanted
        self.lock = threading.Lock()
        self.window: dict[int, str | bytes] = {}
        self.spare: dict[int, str | bytes] = {}
        self.reader = self._read()

    def take(self, i: int) -> str | bytes:
        with self.lock:
            while i not in self.window:
                got = next(self.reader, None)
                if got is None:
                    raise RunError(f"data: the stream ended before {self.stream.name(i)}")
                self.window[got[0]] = got[1]
            return self.window.pop(i)

    def spares(self) -> dict[int, str | bytes]:
        """The first pictures of the lane's first shard, read when first asked for."""
        with self.lock:
            if not self.spare:
                shard, place = self.stream.at(int(self.numbers[0]))
                first = int(self.numbers[0]) - place
                with closing(_generator(self.stream.shards.read(shard))) as pictures:
                    some = islice(pictures, SPARE)
                    self.spare = {first + k: data for k, (_, data) in enumerate(some)}
            return self.spare

    def _read(self) -> Generator[tuple[int, str | bytes]]:
        """Wanted pictures in order; shards without any are not opened."""
        borders = np.flatnonzero(np.diff(self.numbers) != 1) + 1
        for piece in np.split(self.numbers, borders):
            for part in self._by_shard(piece):
                wanted = part[self.wanted[part]]
                if len(wanted):
                    yield from self._shard(wanted)

    def _by_shard(self, piece: Int64[np.ndarray, "p"]) -> list[np.ndarray]:
        """Runs of successive numbers that lie in one shard."""
        ends = self.stream.ends
        low, high = np.searchsorted(ends, piece[[0, -1]], side="right")
        return np.split(piece, np.searchsorted(piece, ends[low:high]))

    def _shard(self, wanted: Int64[np.ndarray, "w"]) -> Generator[tuple[int, str | bytes]]:
        stream = self.stream
        shard, place = stream.at(int(wanted[0]))
        first, count = int(wanted[0]) - place, int(stream.counts[shard])
        last = int(wanted[-1]) - first
        with closing(_generator(stream.shards.read(shard))) as pictures:
            seen = 0
            for seen, (_, data) in enumerate(pictures, 1):
                if seen <= count and self.wanted[first + seen - 1] and seen <= last + 1:
                    yield first + seen - 1, data
                if seen == last + 1 < count:  # the rest belongs to others
                    return
        if seen != count:
            raise RunError(
                f"data: {stream.shards.names[shard]} has {seen} pictures where it had {count}; "
                f"remove {counts_file(stream.shards)} to count again"
            )


class StreamLoader:
    """Batches of views of a stream, as `ViewLoader` gives them of a source."""

    steps: int
    bad: dict[int, str]
    wait: float

    def __init__(
        self,
        stream: Stream,
        views: tuple[View, ...],
        normalize: Normalize,
        *,
        batch_size: int,
        seed: int,
        window: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        device: str | torch.device = "cpu",
    ) -> None:
        if window < 1:
            raise ValueError(f"setting shuffle={window} is too small; choose at least 1")
        self.stream, self.seed, self.window = stream, seed, window
        self.loader = ViewLoader(
            stream,
            views,
            normalize,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world=world,
            threads=threads,
            device=device,
            order=self._order,
            other=stream.other,
        )
        self.rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.batch_size = batch_size
        self.steps, self.bad, self.wait = self.loader.steps, self.loader.bad, 0.0

    def batches(self, epoch: int, start: int = 0) -> Generator[Views]:
        """The epoch's batches from step `start` on: this rank's rows of each."""
        planned = self._plan(self.seed, epoch)
        wanted = planned.order.view(self.steps, self.batch_size)[start:, self.rows]
        reading = self.stream.epoch(planned.lanes, wanted.flatten())
        with reading, closing(self.loader.batches(epoch, start)) as batches:
            for batch in batches:
                self.wait = self.loader.wait
                yield batch

    def _order(self, images: int, seed: int, epoch: int) -> Int64[Tensor, "n"]:
        return self._plan(seed, epoch).order

    def _plan(self, seed: int, epoch: int) -> Plan:
        size, window = self.batch_size, self.window
        return plan(self.stream.counts, batch_size=size, window=window, seed=seed, epoch=epoch)


def is_stream(data: str) -> bool:
    """Whether the data can only be read in order, or is asked to be."""
    if data.startswith(PREFIX) or shards.is_url(data):
        return True
    return data.lower().endswith((".tar.gz", ".tgz"))


def open_stream(data: str, channels: int, progress: Progress | None = None) -> Stream:
    """The stream that `data` names. Its pictures are counted, unless they were before."""
    source = _shards(data.removeprefix(PREFIX), channels)
    counts = _counts(source, progress)
    if not sum(counts):
        raise ValueError(f"data {data} holds no pictures")
    return Stream(source, counts, channels)


def counts_file(source: Shards) -> Path:
    """Where the counts of these shards are kept; for local files, of their present size."""
    sizes = [os.path.getsize(n) if os.path.isfile(n) else -1 for n in source.names]
    key = hashlib.sha256(repr((source.names, sizes)).encode()).hexdigest()[:24]
    root = Path(os.environ.get("SACCADE_DATASETS", "~/.cache/saccade")).expanduser()
    return root / "counts" / f"{key}.json"


def _shards(spec: str, channels: int) -> Shards:
    if spec.startswith("hf:"):
        dataset, side, name = hf.load(spec[3:], "train", streaming=True)
        return Hub(f"{Path(name).name}/{side}", dataset)
    names = shards.paths(spec)
    if all(shards.is_tar(name.partition("?")[0]) for name in names):
        if all(name.endswith(".tar") and not shards.is_url(name) for name in names):
            return Sources(names, [tar.Tar(name, channels) for name in names])
        return Tars(names)
    if all(name.endswith(".parquet") and not shards.is_url(name) for name in names):
        return Sources(names, [from_parquet(Path(name), channels) for name in names])
    raise ValueError(f"data {spec} is no stream; give .tar files or URLs, .parquet, or hf:NAME")


def _counts(source: Shards, progress: Progress | None) -> list[int]:
    if isinstance(source, Sources):
        return [len(s) for s in source.sources]
    path = counts_file(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):  # one rank counts, the others find it done
        if not path.is_file():
            _count(source, path, progress)
    return [int(n) for n in json.loads(path.read_text())["counts"]]


def _count(source: Shards, path: Path, progress: Progress | None) -> None:
    counts = []
    for k in range(len(source.names)):
        counts.append(sum(1 for _ in source.read(k)))
        if progress:
            progress(k + 1, len(source.names))
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps({"shards": source.names, "counts": counts}, indent=2) + "\n")
    os.replace(beside, path)


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if not shards.is_url(name):
        with gzip.open(name, "rb") as file:
            yield file  # type: ignore[misc]
        return
    with urllib.request.urlopen(name, timeout=TIMEOUT) as answer:
        yield _Counted(answer)  # type: ignore[misc]


class _Counted:
    """An answer that says when it ended before its announced length."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.read_so_far = answer, 0
        length = answer.headers.get("Content-Length")
        self.length = None if length is None else int(length)

    def read(self, size: int) -> bytes:
        data = self.answer.read(size)
        self.read_so_far += len(data)
        if not data and self.length is not None and self.read_so_far < self.length:
            raise OSError(f"ended after {self.read_so_far} of {self.length} bytes")
        return data


def _generator(items: Iterator[tuple[str, str | bytes]]) -> Generator[tuple[str, str | bytes]]:
    """The items as a generator, which can be closed."""
    yield from items
