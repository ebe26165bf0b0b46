"""Ranks: torchrun's environment in, a process group out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def launched() -> bool:
    """Was this process started by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


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
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
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
    """Run `saccade ARGUMENTS` once per device under torchrun; its exit code.

    SIGTERM and SIGUSR1 are handed on, so that the ranks write their checkpoint.
    """
    threads = max(1, (os.cpu_count() or 1) // devices)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={devices}", "-m", "saccade", *arguments]
    child = subprocess.Popen(command, env={"OMP_NUM_THREADS": str(threads), **os.environ})
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: child.send_signal(signal.SIGTERM))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the ranks as well
            continue


def first() -> bool:
    """Is this the rank that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"
