"""How fast pictures become views here, stage by stage, and what holds them up."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ..core import View
from ..recipe import Normalize
from .loader import ViewLoader
from .source import BadPicture, Source, Subset

PICTURES = 256  # timed at most
SECONDS = 1.5  # of each timing
BATCH = 8
GAIN = 1.3  # what further threads must bring to be worth naming

STAGES = {"read": "disk", "decode": "decoding", "views": "augmentation"}


def speed(
    source: Source, views: tuple[View, ...], normalize: Normalize, *, threads: int
) -> dict[str, Any]:
    """Seconds a picture of each stage on one thread, rates on more, and the bottleneck.

    Files are dropped from the system's memory first where it lets us, so `read` is the disk.
    Empty where too few pictures can be read.
    """
    rows, cold, warm, whole = _stages(source)
    if len(rows) < BATCH:
        return {}
    some = Subset(source, np.array(rows, dtype=np.int64))
    cores = os.cpu_count() or 1

    def rate(n: int) -> float:
        return _rate(ViewLoader(some, views, normalize, batch_size=BATCH, seed=0, threads=n))

    rates = {n: rate(n) for n in sorted({1, threads, cores})}
    seconds = {
        "read": cold,
        "decode": min(max(whole - warm, 0.0), 1 / rates[1]),  # the loader may decode less
        "views": max(1 / rates[1] - whole, 0.0),
    }
    return {
        "pictures": len(rows),
        "views": sum(view.count for view in views),
        "seconds": seconds,
        "pictures_per_second": {str(n): value for n, value in rates.items()},
        "threads": threads,
        "cores": cores,
        "bottleneck": bottleneck(seconds, rates, threads),
    }


def bottleneck(seconds: dict[str, float], rates: dict[int, float], threads: int) -> str:
    """The disk where that is the slowest stage; else too few threads; else the slowest stage."""
    slowest = max(seconds, key=lambda stage: seconds[stage])
    best = max((rate for n, rate in rates.items() if n > threads), default=0.0)
    if slowest != "read" and best > GAIN * rates[threads]:
        return "threads"
    return STAGES[slowest]


def _stages(source: Source) -> tuple[list[int], float, float, float]:
    """Pictures that can be read, and mean seconds of one: bytes from the disk, bytes from memory,
    and these decoded."""
    count = min(PICTURES, len(source))
    rows, times = [], []
    began = time.perf_counter()
    for i in (k * len(source) // count for k in range(count)):
        try:
            source.read(i)  # leaves out the unreadable, and warms what decodes
            stored = source.stored(i)
            if isinstance(stored, str):
                _drop(stored)
            steps = (source.stored, source.stored, source.read)
            times.append([_seconds(lambda step=step, i=i: _bytes(step(i))) for step in steps])
        except BadPicture:
            continue
        rows.append(i)
        if time.perf_counter() - began > SECONDS and len(rows) >= BATCH:
            break
    cold, warm, whole = np.array(times).mean(0).tolist() if times else (0.0, 0.0, 0.0)
    return rows, cold, warm, whole


def _bytes(stored: str | bytes | Tensor) -> None:
    if isinstance(stored, str):
        with open(stored, "rb") as file:
            file.read()


def _drop(path: str) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS, not on Windows
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rate(loader: ViewLoader) -> float:
    """Pictures a second, from the first batch on."""
    batches = (batch for epoch in itertools.count() for batch in loader.batches(epoch))
    next(batches)
    began, done, spent = time.perf_counter(), 0, 0.0
    while spent < SECONDS:
        done += len(next(batches).index)
        spent = time.perf_counter() - began
    batches.close()
    return done / spent
