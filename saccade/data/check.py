"""What `saccade doctor DATA` says about a set of pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped, UInt8
from torch import Tensor

from . import duplicates
from .bad import Bad
from .source import BadPicture, Source
from .threads import ordered

ALL = 20_000  # pictures looked at unless told otherwise
DEPTHS = {"1": "1 bit", "I": "32 bits", "F": "32-bit float"}  # by Pillow's mode; others have 8 bits

Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True, slots=True)
class Look:
    """One readable picture."""

    mode: str
    size: tuple[int, int]  # height, width
    digest: bytes  # of shape, type and pixels
    thumb: UInt8[np.ndarray, "32 32"]
    sums: Float64[Tensor, "2 c"]  # of values and of their squares, 8-bit values as 0..1
    range: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scan:
    """What was seen of a source: `rows` are the numbers of the readable pictures."""

    source: Source
    tried: int
    rows: list[int]
    looks: list[Look]
    bad: list[Bad]

    def name(self, k: int) -> str:
        return self.source.name(self.rows[k])


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def scan(source: Source, *, sample: int, threads: int, progress: Progress = quiet) -> Scan:
    """Look at `sample` pictures spread evenly over the source, or at all where it has fewer."""
    count = min(sample, len(source))
    numbers = [k * len(source) // count for k in range(count)]
    found = Scan(source, count, [], [], [])

    def work(i: int) -> Look | Bad:
        try:
            return look(source.mode(i), source.read(i))
        except BadPicture as error:
            return Bad(error.name, error.reason)

    stream = ordered(work, numbers, threads=threads, ahead=2 * threads)
    for done, (i, got) in enumerate(zip(numbers, stream, strict=True)):
        if isinstance(got, Bad):
            found.bad.append(got)
        else:
            found.rows.append(i)
            found.looks.append(got)
        progress(done + 1, count)
    return found


def look(mode: str, x: Shaped[Tensor, "c h w"]) -> Look:
    """What is kept of a picture."""
    whole = x.contiguous()
    head = f"{tuple(x.shape)} {x.dtype}".encode()
    pixels = whole.view(torch.uint8).numpy().data
    digest = hashlib.blake2b(pixels, key=head[:64], digest_size=16)
    flat = whole.flatten(1).float()  # [c, pixels]
    if x.dtype == torch.uint8:
        flat.mul_(1 / 255)
    sums = torch.stack(
        [flat.sum(1, dtype=torch.float64), flat.square().sum(1, dtype=torch.float64)]
    )
    low, high = flat.aminmax()
    size = (x.shape[1], x.shape[2])
    extremes = (float(low), float(high))
    return Look(mode, size, digest.digest(), duplicates.thumbnail(x), sums, extremes)


def facts(found: Scan) -> dict[str, Any]:
    """Everything about one set, ready for JSON."""
    source, looks = found.source, found.looks
    mean, std = statistics(looks, source.channels)
    modes = Counter(one.mode for one in looks)
    low, high = zip(*(one.range for one in looks), strict=True) if looks else ((0.0,), (0.0,))
    return {
        "pictures": len(source),
        "other_files": source.skipped,
        "sampled": found.tried,
        "unreadable": [asdict(one) for one in found.bad],
        "width": _spread([one.size[1] for one in looks]),
        "height": _spread([one.size[0] for one in looks]),
        "channels": source.channels,
        "modes": dict(modes.most_common()),
        "depths": dict(_sum((depth(mode), n) for mode, n in modes.items()).most_common()),
        "range": [min(low), max(high)],
        "mean": mean.tolist(),
        "std": std.tolist(),
        "labels": labels(source),
        "duplicates": twins(found),
    }


def statistics(
    looks: list[Look], channels: int
) -> tuple[Float64[Tensor, "c"], Float64[Tensor, "c"]]:
    """Mean and deviation of each channel over all pixels of all pictures."""
    pixels = sum(one.size[0] * one.size[1] for one in looks)
    sums = sum((one.sums for one in looks), torch.zeros(2, channels, dtype=torch.float64))
    mean, square = sums / max(pixels, 1)
    return mean, (square - mean.square()).clamp_min(0).sqrt()


def labels(source: Source) -> dict[str, Any]:
    """Counts of the whole set, not of the sample; empty without labels."""
    if source.labels is None:
        return {}
    known = source.labels[source.labels >= 0]
    counts = np.bincount(known, minlength=len(source.classes)).tolist()
    order = sorted(range(len(counts)), key=lambda k: -counts[k])
    used = [n for n in counts if n]
    return {
        "classes": len(counts),
        "labeled": len(known),
        "unlabeled": len(source.labels) - len(known),
        "counts": {source.classes[k]: counts[k] for k in order},
        "empty": [source.classes[k] for k in order if not counts[k]],
        "imbalance": max(used) / min(used) if used else 0.0,  # largest to smallest class
    }


def twins(found: Scan) -> dict[str, Any]:
    """Pictures that are in the set more than once: pixel by pixel, or nearly."""
    same = list(_doubles(one.digest for one in found.looks).values())
    exact = [group for group in same if len(group) > 1]
    first = [group[0] for group in same]
    thumbs = _thumbs(found.looks[k] for k in first)
    pairs = [(first[i], first[j], score) for i, j, score in duplicates.near(thumbs)]
    return {
        "exact": sum(len(group) - 1 for group in exact),
        "exact_groups": [[found.name(k) for k in group] for group in exact],
        "near": sum(len(group) - 1 for group in duplicates.groups(pairs)),
        "near_pairs": [[found.name(i), found.name(j), score] for i, j, score in pairs],
        "blank": int(duplicates.blank(thumbs).sum()),
    }


def shared(train: Scan, test: Scan) -> dict[str, Any]:
    """Test pictures that the training set holds too: pixel by pixel, or nearly."""
    seen = {one.digest: k for k, one in reversed(list(enumerate(train.looks)))}
    exact = {k: seen[one.digest] for k, one in enumerate(test.looks) if one.digest in seen}
    n = len(train.looks)
    pairs = [
        (i, j - n, score)
        for i, j, score in duplicates.near(_thumbs([*train.looks, *test.looks]))
        if i < n <= j and j - n not in exact
    ]
    return {
        "exact": len(exact),
        "exact_pairs": [[train.name(i), test.name(j)] for j, i in exact.items()],
        "near": len({j for _, j, _ in pairs}),
        "near_pairs": [[train.name(i), test.name(j), score] for i, j, score in pairs],
    }


def depth(mode: str) -> str:
    """Bits of a channel, by Pillow's name of a pixel format, or numpy's of a type."""
    kind, array, _ = mode.partition(" x ")
    if array:
        return f"{8 * np.dtype(kind).itemsize}-bit {kind.rstrip('0123456789')}"
    return "16 bits" if mode.startswith("I;16") else DEPTHS.get(mode, "8 bits")


def _doubles(keys: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    """Key: the places where it stands."""
    found: dict[Hashable, list[int]] = {}
    for k, key in enumerate(keys):
        found.setdefault(key, []).append(k)
    return found


def _thumbs(looks: Iterable[Look]) -> UInt8[np.ndarray, "n 32 32"]:
    empty = np.empty((0, duplicates.SIDE, duplicates.SIDE), dtype=np.uint8)
    return np.concatenate([empty, *(one.thumb[None] for one in looks)])


def _sum(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    total = Counter[str]()
    for key, n in pairs:
        total[key] += n
    return total


def _spread(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    low, middle, high = np.percentile(values, [0, 50, 100]).tolist()
    return {"min": low, "median": middle, "max": high}
