"""What `saccade reproduce` does: the runs of a study, seed by seed, and whether its claim holds.

Every arm and seed is an ordinary run below the folder, pretrained and evaluated through the same
functions as the commands; `study.json` grows by one figure at a time, and a stopped study goes on.
An ordering of two arms holds where the 95 % t-interval of their differences, paired by seed, lies
above 0, is reversed where it lies below, and else is not shown. The control is each arm's own
network before training, where encoders or their attention are measured.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from . import studies, study_runs
from .bench import machine, versions
from .evals.comparison import COLORS, GRAY
from .evals.interval import Interval, over_seeds
from .evals.results import write_json
from .studies import Study

FILE = "study.json"
ROW, LEFT, WIDTH, TOP, BOTTOM = 30, 250, 620, 40, 40  # pixels of the plot
AXIS = 2.5  # end of an axis of exponents


@dataclass(frozen=True, slots=True)
class Order:
    """What became of one comparison of the paper."""

    better: str
    worse: str
    difference: Interval
    published: float | None  # the paper's difference

    @property
    def verdict(self) -> str:
        if self.difference.low > 0:
            return "holds"
        return "reversed" if self.difference.high < 0 else "not shown"


@dataclass(frozen=True, slots=True)
class Reproduced:
    study: Study
    values: dict[str, list[float]]  # accuracies of each arm, one a seed
    controls: dict[str, list[float]]  # the same before training
    orders: list[Order]
    settings: dict[str, Any]  # of all runs

    @property
    def sentence(self) -> str:
        if not self.orders:
            return "The claim is about likeness: compare the intervals."
        counts = Counter(o.verdict for o in self.orders)
        hold = "holds" if counts["holds"] == 1 else "hold"
        words = {"holds": hold, "not shown": "not shown", "reversed": "reversed"}
        said = ", ".join(f"{counts[v]} {word}" for v, word in words.items() if counts[v])
        return f"Of {counts.total()} orderings of the paper: {said}."


def reproduce(
    name: str,
    data: str,
    out: Path,
    *,
    seeds: int = 3,
    seen: int = 0,
    pictures: int = 0,
    precision: str = "",
) -> Reproduced:
    """Run what is missing of a study; `seen`, `pictures` and `precision` are its own if empty."""
    study = studies.get(name)
    seen, pictures = seen or study.seen, pictures or study.pictures
    if seeds < 2:
        raise ValueError(f"setting seeds: {seeds} has no spread; give 2 or more")
    settings = {"study": name, "data": data, "seen": seen, "pictures": pictures}
    settings |= {"precision": precision} if precision else {}
    report = _begin(out, settings)
    for seed in range(seeds):
        for arm in study.arms:
            if not any((r["arm"], r["seed"]) == (arm.name, seed) for r in report["runs"]):
                report["runs"].append(study_runs.run(study, arm, seed, settings, out))
                write_json(out / FILE, report)
    rows = [r for r in report["runs"] if r["seed"] < seeds]
    return judge(study, rows, {**settings, "seeds": seeds})


def judge(study: Study, rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Reproduced:
    """The study's comparisons on the figures of its runs."""
    values = {a.name: [r["value"] for r in rows if r["arm"] == a.name] for a in study.arms}
    controls = {
        a.name: [r["control"] for r in rows if r["arm"] == a.name and r["control"] is not None]
        for a in study.arms
    }
    published = {a.name: a.published for a in study.arms}
    orders = []
    for better, worse in study.order:
        pairs = zip(values[better], values[worse], strict=True)
        a, b = published[better], published[worse]
        gap = None if a is None or b is None else a - b
        orders.append(Order(better, worse, over_seeds([x - y for x, y in pairs]), gap))
    return Reproduced(study, values, controls, orders, settings)


def to_dict(found: Reproduced) -> dict[str, Any]:
    """Plain values, ready for JSON; accuracies are fractions of 1."""
    return {
        "bench": "reproduce",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": found.settings,
        "claim": found.study.claim,
        "source": found.study.source,
        "verdict": found.sentence,
        "arms": {
            a.name: {
                "published": a.published,
                "ours": asdict(over_seeds(found.values[a.name])),
                "before": asdict(over_seeds(own)) if (own := found.controls[a.name]) else None,
            }
            for a in found.study.arms
        },
        "orders": [asdict(o) | {"verdict": o.verdict} for o in found.orders],
    }


def tables(found: Reproduced) -> list[Table]:
    """Ours beside the paper's, and the orderings."""
    study = found.study
    arms = Table(title=study.claim, caption=f"paper: {study.figure}")
    arms.add_column("arm", overflow="fold")
    for name in ("paper", f"ours, {what(study)}", "before training"):
        arms.add_column(name, justify="right")
    for a in study.arms:
        paper = "" if a.published is None else f"{study.unit * a.published:.1f}"
        own, before = (_shown(study, v[a.name]) for v in (found.values, found.controls))
        arms.add_row(a.name, paper, own, before)
    points = "points; " if study.unit != 1 else ""
    orders = Table(caption=f"{points}95 % t-interval over seeds, paired")
    for name in ("larger in the paper", "than"):
        orders.add_column(name, overflow="fold")
    for name in ("paper", "ours", ""):
        orders.add_column(name, justify="right")
    for o in found.orders:
        paper = "" if o.published is None else f"{study.unit * o.published:+.1f}"
        value, low, high = (
            f"{study.unit * x:+.1f}"
            for x in (o.difference.value, o.difference.low, o.difference.high)
        )
        orders.add_row(o.better, o.worse, paper, f"{value} ({low} to {high})", o.verdict)
    return [arms, orders] if found.orders else [arms]


def what(study: Study) -> str:
    """What our figures are."""
    match study.measure:
        case "accuracy":
            return study.protocol
        case "system":
            return study.metric or study.protocol
        case "degeneracy":
            return "likeness of queries' maps"
        case "growth":
            return f"growth of {study.metric}"


def plot(found: Reproduced, path: Path) -> None:
    """A PNG: ours with its interval, the paper's figure and the untrained network, arm by arm."""
    study, arms = found.study, found.study.arms
    sheet = Image.new("RGB", (LEFT + WIDTH + 60, TOP + ROW * len(arms) + BOTTOM), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = 1.0 if study.unit != 1 else AXIS
    at = lambda value: LEFT + WIDTH * min(max(value / top, 0.0), 1.0)  # noqa: E731
    bottom = TOP + ROW * len(arms)
    for share in np.linspace(0, top, 6).tolist():
        pen.line((at(share), TOP, at(share), bottom), "#DDDDDD")
        words = f"{100 * share:.0f} %" if study.unit != 1 else f"{share:.1f}"
        pen.text((at(share) - 14, bottom + 6), words, "black", font)
    for i, a in enumerate(arms):
        y = TOP + ROW * (i + 0.5)
        own = over_seeds(found.values[a.name])
        pen.text((8, y - 8), a.name[:34], "black", font)
        if found.controls[a.name]:
            before = float(np.mean(found.controls[a.name]))
            pen.line((at(before), y - 6, at(before), y + 6), GRAY, 2)
        pen.line((at(own.low), y, at(own.high), y), COLORS[0], 2)
        pen.ellipse((at(own.value) - 4, y - 4, at(own.value) + 4, y + 4), COLORS[0])
        if a.published is not None:
            x = at(a.published)
            pen.polygon([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], None, COLORS[1], 2)
    for x, color, words in (
        (8, COLORS[0], f"ours, {what(study)}"),
        (LEFT, COLORS[1], f"paper: {study.figure}"),
        (LEFT + WIDTH - 100, "#666666", "| before training"),
    ):
        pen.text((x, 10), words, color, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _begin(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not (out / FILE).is_file():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"setting out: {out} is not empty and holds no study; choose another")
        return {"settings": settings, "runs": []}
    report = json.loads((out / FILE).read_text())
    if report["settings"] != settings:
        raise ValueError(
            f"setting out: {out} holds a study with {report['settings']}; choose another folder"
        )
    return report


def _shown(study: Study, values: Sequence[float]) -> str:
    if not values:
        return ""
    interval = over_seeds(values)
    half = (interval.high - interval.low) / 2
    return f"{study.unit * interval.value:.1f} ± {study.unit * half:.1f}"
