"""The list of pictures that could not be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, order=True)
class Bad:
    """A picture that could not be read, and why."""

    name: str
    reason: str


def write_bad(path: Path, bad: Iterable[Bad]) -> None:
    """One JSON object a line, sorted by name; the file appears whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    lines = [json.dumps(asdict(one)) + "\n" for one in sorted(set(bad))]
    beside.write_text("".join(lines), encoding="utf-8")
    os.replace(beside, path)
