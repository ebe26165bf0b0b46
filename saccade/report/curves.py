"""What `metrics.jsonl` plots: one chart a figure, one line a run, few enough points to be quick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .files import RunFiles

POINTS = 800  # of a line at most
LABELS = {  # in the order of the page; other figures follow by name
    "loss": "loss",
    "online_knn": "online kNN, share of test pictures right",
    "rankme": "RankMe: effective rank of the features",
    "feature_std": "spread of the features: 1 even, 0 collapsed",
    "output_std": "spread of what the loss compares: 1 far apart, 0 collapsed",
    "uniformity": "uniformity: lower is more even",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "data_wait": "share of the time spent waiting for data",
    "images_per_second": "pictures a second",
}
SKIPPED = {"step", "epoch", "steps_per_second"}


def charts(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Each: name, title, and lines of run number, x (steps) and y."""
    names = {k for run in runs for row in run.rows for k, v in row.items() if _number(v)} - SKIPPED
    order = [*(n for n in LABELS if n in names), *sorted(names - LABELS.keys())]
    return [{"name": n, "title": LABELS.get(n, n), "lines": _lines(runs, n)} for n in order]


def _lines(runs: Sequence[RunFiles], name: str) -> list[dict[str, Any]]:
    found = []
    for i, run in enumerate(runs):
        points = [(row["step"], row[name]) for row in run.rows if _number(row.get(name))]
        if points:
            kept = thinned(points)
            found.append({"run": i, "x": [x for x, _ in kept], "y": [_short(y) for _, y in kept]})
    return found


def thinned(points: list[tuple[int, float]], most: int = POINTS) -> list[tuple[int, float]]:
    """At most that many points, in which every valley and peak is kept."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept = []
    for at in range(0, len(points), size):
        block = points[at : at + size]
        ends = {min(block, key=lambda p: p[1]), max(block, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def last_values(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """A row a figure, a column a run: what a reader without drawings sees."""
    found = []
    for chart in charts(runs):
        ends = {line["run"]: f"{line['y'][0]:.4g} → {line['y'][-1]:.4g}" for line in chart["lines"]}
        found.append((chart["title"], [ends.get(i, "") for i in range(len(runs))]))
    return found
