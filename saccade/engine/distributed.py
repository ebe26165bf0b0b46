"""Ranks: torchrun's environment in, a process group out."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

STORE = "SACCADE_STORE"  # the file in which the ranks of `launch` meet
WRONG = 2  # exit code where settings are wrong
GRACE = 10.0  # seconds that ranks have to end by themselves after one has failed


def launched() -> bool:
    """Was this process started as a rank, by torchrun or by `launch`."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def ranks(devices: int) -> int:
    """How many processes train: those of the launch, else those that are asked for."""
    return int(os.environ["WORLD_SIZE"]) if launched() else devices


def device() -> torch.device:
    """This rank's device: its GPU where CUDA is there, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def group() -> Iterator[torch.device]:
    """The process group of a torchrun launch (nccl on GPUs, gloo on CPUs), or none."""
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if not launched() or dist.is_initialized():
        yield here
        return
    meet: dict[str, Any] = {}
    if store := os.environ.get(STORE):
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meet = {"init_method": f"file://{store}", "rank": rank, "world_size": world}
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", **meet)
    try:
        yield here
    finally:
        dist.destroy_process_group()


def check_devices(devices: int) -> None:
    """Raise where more GPUs are asked for than there are; on a CPU any number of ranks may run."""
    if devices < 1:
        raise ValueError(f"setting devices: {devices} is too few; give 1 or more")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there and devices > there:
        raise ValueError(
            f"setting devices: {devices} asked for, {there} here; give at most {there}"
        )


def launch(devices: int, arguments: list[str]) -> int:
    """Run `saccade ARGUMENTS` once per device; 0, or the exit code of the first rank to fail.

    SIGTERM and SIGUSR1 are handed on, so that the ranks write their checkpoint. The first rank
    speaks. What another one has said is shown where it failed, but for settings that are wrong on
    all of them.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        said = [opened.enter_context((Path(folder) / str(r)).open("w+")) for r in range(devices)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "saccade", *arguments],
                env=_environment(r, devices, Path(folder)),
                stdout=said[r] if r else None,
                stderr=said[r] if r else None,
            )
            for r in range(devices)
        ]
        with _handing_on(ranks):
            first = _ended(ranks)
        if first and ranks[0].returncode != WRONG:
            said[first].seek(0)
            sys.stderr.write(f"saccade: rank {first} failed:\n{said[first].read()}")
        return 0 if first is None else ranks[first].returncode


def _environment(rank: int, world: int, folder: Path) -> dict[str, str]:
    """As torchrun gives it, but ranks meet in a file: no port can be taken."""
    here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    threads = max(1, (os.cpu_count() or 1) // world)
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **here, STORE: str(folder / "store")}


@contextmanager
def _handing_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """The signals that ask for a checkpoint go to all ranks."""

    def hand_on(number: int, frame: object) -> None:
        for p in ranks:
            p.send_signal(number)

    before = {n: signal.signal(n, hand_on) for n in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all ranks; the one that was seen to fail first, if any.

    It leaves the others waiting for it, so they are ended a little later.
    """
    first, until = None, math.inf
    while any(p.poll() is None for p in ranks):
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:  # the terminal has sent it to the ranks as well
            continue
        if first is None and (first := _failed(ranks)) is not None:
            until = time.monotonic() + GRACE
        if time.monotonic() > until:
            for p in ranks:
                p.kill()
    return _failed(ranks) if first is None else first


def _failed(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    return next((r for r, p in enumerate(ranks) if p.poll()), None)


def first() -> bool:
    """Is this the rank that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"
