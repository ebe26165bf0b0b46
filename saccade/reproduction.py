"""What `saccade reproduce` does: the runs of a study, seed by seed, and whether its claim holds.

Every arm and seed is an ordinary run below the folder, pretrained and evaluated through the same
functions as the commands; `study.json` grows by one figure at a time, and a stopped study goes on.
An ordering of two arms holds where the 95 % t-interval of their differences, paired by seed, lies
above 0, is reversed where it lies below, and else is not shown. The control is each arm's own
network before training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from . import config, evaluation, pretraining, studies
from . import run as runs
from .data.source import open_source
from .errors import RunError
from .evals.comparison import COLORS, GRAY
from .evals.interval import Interval, over_seeds
from .evals.results import write_json
from .studies import Arm, Study

FILE = "study.json"
ROW, LEFT, WIDTH, TOP, BOTTOM = 30, 250, 620, 40, 40  # pixels of the plot


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

    @property
    def sentence(self) -> str:
        if not self.orders:
            return "The claim is about likeness: compare the intervals."
        counts = [o.verdict for o in self.orders]
        said = ", ".join(
            f"{counts.count(v)} {v}" for v in ("holds", "not shown", "reversed") if v in counts
        )
        return f"Of {len(counts)} orderings of the paper: {said}."


def reproduce(
    name: str, data: str, out: Path, *, seeds: int = 3, seen: int = 0, pictures: int = 0
) -> Reproduced:
    """Run what is missing of a study; `seen` and `pictures` of 0 are the study's own."""
    study = studies.get(name)
    seen, pictures = seen or study.seen, pictures or study.pictures
    if seeds < 2:
        raise ValueError(f"setting seeds: {seeds} has no spread; give 2 or more")
    settings = {"study": name, "data": data, "seen": seen, "pictures": pictures}
    report = _begin(out, settings)
    for seed in range(seeds):
        for arm in study.arms:
            if not any((r["arm"], r["seed"]) == (arm.name, seed) for r in report["runs"]):
                report["runs"].append(_run(study, arm, seed, settings, out))
                write_json(out / FILE, report)
    return judge(study, [r for r in report["runs"] if r["seed"] < seeds])


def judge(study: Study, rows: Sequence[dict[str, Any]]) -> Reproduced:
    """The study's comparisons on the figures of its runs."""
    values = {a.name: [r["value"] for r in rows if r["arm"] == a.name] for a in study.arms}
    controls = {a.name: [r["control"] for r in rows if r["arm"] == a.name] for a in study.arms}
    published = {a.name: a.published for a in study.arms}
    orders = []
    for better, worse in study.order:
        pairs = zip(values[better], values[worse], strict=True)
        a, b = published[better], published[worse]
        gap = None if a is None or b is None else a - b
        orders.append(Order(better, worse, over_seeds([x - y for x, y in pairs]), gap))
    return Reproduced(study, values, controls, orders)


def to_dict(found: Reproduced) -> dict[str, Any]:
    """Plain values, ready for JSON; accuracies are fractions of 1."""
    return {
        "claim": found.study.claim,
        "source": found.study.source,
        "verdict": found.sentence,
        "arms": {
            a.name: {
                "published": a.published,
                "ours": asdict(over_seeds(found.values[a.name])),
                "before": asdict(over_seeds(found.controls[a.name])),
            }
            for a in found.study.arms
        },
        "orders": [asdict(o) | {"verdict": o.verdict} for o in found.orders],
    }


def tables(found: Reproduced) -> list[Table]:
    """Ours beside the paper's, and the orderings."""
    arms = Table(title=found.study.claim, caption=f"paper: {found.study.figure}")
    arms.add_column("arm", overflow="fold")
    for name in ("paper", f"ours, {found.study.protocol}", "before training"):
        arms.add_column(name, justify="right")
    for a in found.study.arms:
        paper = "" if a.published is None else f"{100 * a.published:.1f}"
        own, before = (over_seeds(v[a.name]) for v in (found.values, found.controls))
        arms.add_row(a.name, paper, _shown(own), _shown(before))
    orders = Table(caption="points; 95 % t-interval over seeds, paired")
    for name in ("better in the paper", "than"):
        orders.add_column(name, overflow="fold")
    for name in ("paper", "ours", ""):
        orders.add_column(name, justify="right")
    for o in found.orders:
        paper = "" if o.published is None else f"{100 * o.published:+.1f}"
        ends = f"{100 * o.difference.low:+.1f} to {100 * o.difference.high:+.1f}"
        ours = f"{100 * o.difference.value:+.1f} ({ends})"
        orders.add_row(o.better, o.worse, paper, ours, o.verdict)
    return [arms, orders] if found.orders else [arms]


def plot(found: Reproduced, path: Path) -> None:
    """A PNG: ours with its interval, the paper's figure and the untrained network, arm by arm."""
    arms = found.study.arms
    sheet = Image.new("RGB", (LEFT + WIDTH + 60, TOP + ROW * len(arms) + BOTTOM), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    at = lambda value: LEFT + WIDTH * min(max(value, 0.0), 1.0)  # noqa: E731
    bottom = TOP + ROW * len(arms)
    for share in np.linspace(0, 1, 6).tolist():
        pen.line((at(share), TOP, at(share), bottom), "#DDDDDD")
        pen.text((at(share) - 14, bottom + 6), f"{100 * share:.0f} %", "black", font)
    for i, a in enumerate(arms):
        y = TOP + ROW * (i + 0.5)
        own = over_seeds(found.values[a.name])
        before = float(np.mean(found.controls[a.name]))
        pen.text((8, y - 8), a.name[:34], "black", font)
        pen.line((at(before), y - 6, at(before), y + 6), GRAY, 2)
        pen.line((at(own.low), y, at(own.high), y), COLORS[0], 2)
        pen.ellipse((at(own.value) - 4, y - 4, at(own.value) + 4, y + 4), COLORS[0])
        if a.published is not None:
            x = at(a.published)
            pen.polygon([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], None, COLORS[1], 2)
    for x, color, words in (
        (8, COLORS[0], f"ours, {found.study.protocol}"),
        (LEFT, COLORS[1], f"paper: {found.study.figure}"),
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


def _run(study: Study, arm: Arm, seed: int, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Pretrain one arm and measure it, before and after. A loss that is not finite is a result."""
    folder = out / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}"
    flags = {
        "data": settings["data"],
        "limit": settings["pictures"],
        "backbone.name": arm.backbone,
        "batch_size": arm.batch_size,
        "steps": max(1, settings["seen"] // arm.batch_size),
        "engine.knn_every": 0,
        "seed": seed,
    }
    run = runs.assemble(
        method=arm.method,
        recipe="small",
        config=None,
        out=None,
        flags=flags,
        sets=[*study.common, *arm.sets],
    )
    stopped = ""
    try:
        if not pretraining.pretrain(run, folder, resume=True).finished:
            raise KeyboardInterrupt
    except RunError as error:  # a loss that is not finite is an outcome of a study
        stopped = str(error)
    control = _figure(study, folder / "initial", settings, seed)
    value = _chance(settings) if stopped else _figure(study, folder / "backbone", settings, seed)
    return {
        "arm": arm.name,
        "seed": seed,
        "control": control,
        "value": value,
        "stopped": stopped,
        "run": config.to_dict(run),
    }


def _figure(study: Study, weights: Path, settings: dict[str, Any], seed: int) -> float:
    """The protocol's headline, a fraction of 1."""
    request = evaluation.Request(
        weights=(str(weights),),
        data=settings["data"],
        protocols=(study.protocol,),
        limit=settings["pictures"],
        seed=seed,
        baselines=False,
    )
    return evaluation.evaluate(request, lambda loaded: None)[0].value


def _chance(settings: dict[str, Any]) -> float:
    """What an arm that stopped counts as: one over the number of classes."""
    return 1 / len(open_source(settings["data"], split="test").classes)


def _shown(interval: Interval) -> str:
    half = (interval.high - interval.low) / 2
    return f"{100 * interval.value:.1f} ± {100 * half:.1f}"
