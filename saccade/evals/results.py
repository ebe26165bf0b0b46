"""What an evaluation leaves: figures with protocol, settings, n and interval. No torch here.

Accuracies are fractions of 1 in Python and JSON, and percent in tables.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from rich.table import Table

from .interval import Interval, paired


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of one model under one protocol."""

    model: str
    protocol: str  # with its version: "knn-dino/1"
    metric: str
    value: float  # 0..1 where the unit is %
    low: float  # ends of the 95 % interval over test pictures
    high: float
    n: int  # test pictures
    settings: dict[str, Any] = field(default_factory=dict)
    hits: str = ""  # what each test picture gave, by `pack`: pairs two models later
    unit: str = "%"  # or "": a plain number

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Score:
    """What a protocol yields: a value for each test picture, whose mean is the figure."""

    metric: str
    values: Shaped[np.ndarray, "n"]  # right or wrong, or a number in 0..1
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """What a protocol yields that is no mean over pictures."""

    metric: str
    interval: Interval
    n: int  # pictures
    settings: dict[str, Any]
    unit: str = ""


def pack(values: Shaped[np.ndarray, "n"]) -> str:
    """One bit a picture, or a 32-bit number a picture, in the order of the data, as base64."""
    held = np.packbits(values) if values.dtype == bool else values.astype("<f4")
    return base64.b64encode(held.tobytes()).decode()


def unpack(hits: str, n: int) -> Shaped[np.ndarray, "n"]:
    """The inverse of `pack`."""
    raw = base64.b64decode(hits)
    if len(raw) == 4 * n:  # bits take n / 8 bytes
        return np.frombuffer(raw, dtype="<f4")
    return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=n).astype(bool)


def answers(
    before: Result, after: Result
) -> tuple[Shaped[np.ndarray, "n"], Shaped[np.ndarray, "n"]]:
    """What two models gave on the same pictures; ValueError where the pictures differ."""
    same = [(r.protocol, r.metric, r.n, r.settings.get("test")) for r in (before, after)]
    if same[0] != same[1] or not before.hits:
        raise ValueError(f"results {same[0]} and {same[1]} differ in protocol or test pictures")
    return unpack(before.hits, before.n), unpack(after.hits, after.n)


def gain(before: Result, after: Result, seed: int = 0) -> Interval:
    """Figure after minus before, paired over the test pictures that both answered."""
    return paired(*answers(before, after), seed)


def write_results(
    path: Path | str, results: Iterable[Result], extra: dict[str, Any] | None = None
) -> None:
    """`extra` and a list `results`, as JSON, written beside and renamed."""
    write_json(path, {**(extra or {}), "results": [r.to_dict() for r in results]})


def read_results(path: Path | str) -> list[Result]:
    """What `write_results` wrote."""
    return [Result(**r) for r in json.loads(Path(path).read_text())["results"]]


def write_json(path: Path | str, content: Any) -> None:
    """The whole file or the old one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(beside, path)


def table(results: Iterable[Result], title: str = "") -> Table:
    """A row a result, in percent where it is a share."""
    view = Table(title=title or None, caption="95 % interval over test pictures")
    view.add_column("model", overflow="fold")
    for name in ("protocol", "metric"):
        view.add_column(name, no_wrap=True)
    for name in ("%", "interval", "pictures"):
        view.add_column(name, justify="right")
    for r in results:
        value, low, high = shown(r)
        view.add_row(r.model, r.protocol, r.metric, value, f"{low} to {high}", f"{r.n:,}")
    return view


def shown(r: Result) -> tuple[str, str, str]:
    """Value and ends of the interval as people read them."""
    if r.unit == "%":
        return f"{100 * r.value:.1f}", f"{100 * r.low:.1f}", f"{100 * r.high:.1f}"
    return f"{r.value:.3g}", f"{r.low:.3g}", f"{r.high:.3g}"
