"""What `saccade doctor DATA` says about a set of pictures."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bad import Bad
from .source import BadPicture, Source
from .threads import ordered


def check(source: Source, sample: int = 256) -> dict[str, Any]:
    """Facts of the whole set, and of `sample` pictures spread evenly over it, ready for JSON."""
    count = min(sample, len(source))
    rows = [k * len(source) // count for k in range(count)]
    seen = Counter[str]()
    bad: list[Bad] = []
    sides: list[tuple[int, int]] = []
    sums = torch.zeros(2, source.channels, dtype=torch.float64)
    pixels, modes = 0, Counter[str]()

    def work(i: int) -> tuple[str, Tensor] | Bad:
        try:
            return source.mode(i), source.read(i)
        except BadPicture as error:
            return Bad(error.name, error.reason)

    threads = os.cpu_count() or 1
    began = time.perf_counter()
    for got in ordered(work, rows, threads=threads, ahead=2 * threads):
        if isinstance(got, Bad):
            bad.append(got)
            continue
        mode, x = got
        modes[mode] += 1
        sides.append((x.shape[2], x.shape[1]))
        seen[_digest(x)] += 1
        flat = x.flatten(1).double() / 255  # [c, pixels]
        sums += torch.stack([flat.sum(1), flat.square().sum(1)])
        pixels += flat.shape[1]
    seconds = time.perf_counter() - began
    mean = sums[0] / max(pixels, 1)
    return {
        "pictures": len(source),
        "classes": len(source.classes),
        "other_files": source.skipped,
        "sampled": count,
        "unreadable": [asdict(one) for one in bad],
        "duplicates": sum(n - 1 for n in seen.values()),
        "width": _range([w for w, _ in sides]),
        "height": _range([h for _, h in sides]),
        "modes": dict(modes.most_common()),
        "mean": mean.tolist(),
        "std": (sums[1] / max(pixels, 1) - mean.square()).clamp_min(0).sqrt().tolist(),
        "pictures_per_second": count / seconds,
        "threads": threads,
    }


def _digest(x: Tensor) -> str:
    return hashlib.sha256(str(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest()


def _range(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    low, middle, high = np.percentile(values, [0, 50, 100]).tolist()
    return {"min": low, "median": middle, "max": high}
