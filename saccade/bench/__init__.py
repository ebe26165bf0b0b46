"""Figures beside peers, in one run: arms take turns, so that a slow minute slows them all."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .. import __version__

Work = Callable[[], None]  # one step of an arm


def interleave(
    arms: dict[str, Work], rounds: int, now: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of each arm in each round, after one round that does not count."""
    now = now or wall
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for lap in range(rounds + 1):
        for name, work in arms.items():
            began = now()
            work()
            if lap:
                seconds[name].append(now() - began)
    return seconds


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Of what took part."""
    found = {"python": platform.python_version(), "saccade": __version__}
    for name in ("torch", "torchvision", "timm", "lightly"):
        with suppress(PackageNotFoundError):  # peers need not be installed
            found[name] = version(name)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {"median": middle, "low": low, "high": high}


def wall() -> float:
    """Seconds, after what a GPU still had to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def single() -> bool:
    """Whether one thread of a CPU does all work, so that its processor time is the time."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()
