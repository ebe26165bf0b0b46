"""A run folder as plain values. Files that are not there, or not ours, are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..data.bad import Bad
from ..engine.log import LOG, rows
from ..evals.results import Result
from ..run import FILE

PREDICTIONS = "predictions.json"
KNOWN = {f.name for f in fields(Result)}
NEEDED = KNOWN - {"settings", "hits", "unit"}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    folder: Path
    label: str  # what the page calls it
    config: dict[str, Any]  # run.json
    rows: list[dict[str, Any]]  # metrics.jsonl
    results: list[Result]  # of all JSON files in the folder that hold any
    done: dict[str, Any] | None  # done.json: None while it trains
    bad: list[Bad]

    @property
    def pretraining(self) -> bool:
        """Without labels; else a downstream system."""
        return "method" in self.config


def read(folders: Sequence[Path]) -> list[RunFiles]:
    """The runs in order. Raises ValueError where a folder is not a run."""
    return [_read(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(p[-depth:]) for p in parts]
        if len(set(found)) == len(found):
            return found
    raise ValueError(f"setting run: {folders[0]} is given twice; name each run once")


def _read(folder: Path, label: str) -> RunFiles:
    config = _json(folder / FILE)
    if not isinstance(config, dict) or not {"method", "system"} & config.keys():
        raise ValueError(f"setting run: {folder} holds no run ({FILE}); give a run's folder")
    done = _json(folder / "done.json")
    return RunFiles(
        folder=folder,
        label=label,
        config=config,
        rows=[r for r in rows(folder / LOG) if isinstance(r, dict) and "step" in r],
        results=[r for path in sorted(folder.glob("*.json")) for r in _results(path)],
        done=done if isinstance(done, dict) else None,
        bad=[Bad(r["name"], r["reason"]) for r in rows(folder / "bad_files.jsonl")],
    )


def _json(path: Path) -> Any:
    """What a file holds; None where it is not there, or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _results(path: Path) -> list[Result]:
    content = _json(path)
    found = content.get("results") if isinstance(content, dict) else None
    found = found if isinstance(found, list) else []
    return [Result(**r) for r in found if isinstance(r, dict) and NEEDED <= r.keys() <= KNOWN]


def predictions(folder: Path, most: int = 12) -> list[Path]:
    """Drawn pictures that `saccade predict` left in a folder inside the run's."""
    found = []
    for path in sorted(folder.glob(f"*/{PREDICTIONS}")):
        content = _json(path)
        listed = content.get("pictures") if isinstance(content, dict) else None
        for row in listed if isinstance(listed, list) else []:
            drawn = path.parent / str(row.get("drawn", "")) if isinstance(row, dict) else path
            inside = drawn.resolve().is_relative_to(path.parent.resolve())
            if inside and drawn.suffix in (".jpg", ".png") and drawn.is_file():
                found.append(drawn)
    return found[:most]
