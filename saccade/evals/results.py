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
from jaxtyping import Bool
from rich.table import Table

from .interval import Interval, paired


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of one model under one protocol."""

    model: str
    protocol: str  # with its version: "knn-dino/1"
    metric: str
    value: float  # 0..1
    low: float  # ends of the 95 % bootstrap interval over test pictures
    high: float
    n: int  # test pictures
    settings: dict[str, Any] = field(default_factory=dict)
    hits: str = ""  # which test pictures were right, by `pack`: pairs two models later

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Score:
    """What a protocol yields: which test pictures it got right, and how it was set."""

    metric: str
    correct: Bool[np.ndarray, "n"]
    settings: dict[str, Any]


def pack(correct: Bool[np.ndarray, "n"]) -> str:
    """One bit a picture, in the order of the data, as base64."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpack(hits: str, n: int) -> Bool[np.ndarray, "n"]:
    """The inverse of `pack`."""
    bits = np.frombuffer(base64.b64decode(hits), dtype=np.uint8)
    return np.unpackbits(bits, count=n).astype(bool)


def gain(before: Result, after: Result, seed: int = 0) -> Interval:
    """Accuracy after minus before, paired over the test pictures that both answered."""
    same = [(r.protocol, r.metric, r.n, r.settings.get("test")) for r in (before, after)]
    if same[0] != same[1]:
        raise ValueError(f"results {same[0]} and {same[1]} differ in protocol or test pictures")
    return paired(unpack(before.hits, before.n), unpack(after.hits, after.n), seed)


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
    """A row a result, in percent."""
    view = Table(title=title or None, caption="95 % bootstrap interval over test pictures")
    view.add_column("model", overflow="fold")
    for name in ("protocol", "metric"):
        view.add_column(name, no_wrap=True)
    for name in ("%", "interval", "pictures"):
        view.add_column(name, justify="right")
    for r in results:
        interval = f"{100 * r.low:.1f} to {100 * r.high:.1f}"
        row = (r.model, r.protocol, r.metric, f"{100 * r.value:.1f}", interval, f"{r.n:,}")
        view.add_row(*row)
    return view
