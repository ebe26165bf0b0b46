"""Did pretraining help? At several numbers of labels, with it and without it.

Arms that have seen pretraining, at every number of labels: its frozen features, and all its layers
trained. Arms that have not: random weights frozen, the same network trained from scratch for as
many steps, and what needs no network. `gain` is the best arm with pretraining against the best
network without it, in means over seeds, where a seed draws the labelled pictures, the random
weights and the order of training; its interval is Student's t over the seeds' differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from . import weights
from .data.source import Source, open_source
from .engine import distributed
from .engine.log import counter
from .evals import baselines, few_labels
from .evals.comparison import COLORS, GRAY
from .evals.features import Data
from .evals.few_labels import Hits
from .evals.interval import Interval, over_seeds
from .evals.run import fingerprint, labeled
from .weights import Loaded

WITHOUT = ("random weights, frozen", "from scratch")
TRIVIAL = ("chance", "color-histogram", "hog")

# Pixels of the plot.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 440, 60, 300, 30, 50


@dataclass(frozen=True, kw_only=True)
class Question:
    weights: tuple[str, ...]  # the first is judged, the others stand beside
    data: str
    labels: tuple[int, ...]  # in all, spread evenly over the classes
    eval_data: str = ""
    seeds: int = 3
    steps: int = 300  # of training all layers
    workers: int = 2


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracy of one arm with one number of labels, one value a seed."""

    arm: str
    labels: int
    values: tuple[float, ...]

    @property
    def interval(self) -> Interval:
        return over_seeds(self.values)


@dataclass(frozen=True, slots=True)
class Gain:
    """What pretraining adds at one number of labels."""

    labels: int
    best: str  # arm with pretraining
    other: str  # network without it
    interval: Interval

    @property
    def sign(self) -> int:
        """1: it helps, -1: it harms, 0: no difference is seen."""
        return int(self.interval.low > 0) - int(self.interval.high < 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    points: list[Point]
    gains: list[Gain]
    sentence: str
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; accuracies are fractions of 1."""
        return {
            "verdict": self.sentence,
            "gains": [asdict(g) | {"sign": g.sign} for g in self.gains],
            "points": [asdict(p) | {"interval": asdict(p.interval)} for p in self.points],
            "settings": self.settings,
        }


def ask(question: Question) -> Verdict:
    """Train and measure every arm. Raises ValueError where the question cannot be asked."""
    _check(question)
    loaded = [weights.load(name) for name in question.weights]
    channels = loaded[0].config.channels
    if any(one.config.channels != channels for one in loaded):
        raise ValueError("setting beside: these weights take pictures of other channels")
    train = labeled(open_source(question.data, split="train", channels=channels), "data")
    test = open_source(question.eval_data or question.data, split="test", channels=channels)
    test = labeled(test, "eval-data")
    for count in question.labels:
        few_labels.choose(train, count, 0)
    arms: dict[tuple[str, int], list[Hits]] = {}
    for arm, count, hits in _measure(question, loaded, train, test):
        arms.setdefault((arm, count), []).append(hits)
    points = [Point(a, n, tuple(float(h.mean()) for h in hits)) for (a, n), hits in arms.items()]
    gains = [gain(points, question.weights[0], n) for n in sorted(set(question.labels))]
    settings = asdict(question) | {
        "test": fingerprint(test),
        "n": len(test),
        "classes": len(train.classes),
        "training": asdict(few_labels.TRAINING),
    }
    return Verdict(points, gains, sentence(gains, points), settings)


def gain(points: Sequence[Point], name: str, labels: int) -> Gain:
    """Best arm of `name` against the best network that saw no pretraining."""
    here = [p for p in points if p.labels == labels]
    mine = max((p for p in here if p.arm in _own(name)), key=lambda p: np.mean(p.values))
    other = max((p for p in here if p.arm in WITHOUT), key=lambda p: np.mean(p.values))
    differences = [a - b for a, b in zip(mine.values, other.values, strict=True)]
    return Gain(labels, mine.arm, other.arm, over_seeds(differences))


def sentence(gains: Sequence[Gain], points: Sequence[Point]) -> str:
    """Worth it or not, from how many labels on it stops mattering, and what else does as well."""
    helps = [g for g in gains if g.sign > 0]
    harms = [g for g in gains if g.sign < 0]
    words = []
    if helps:
        top = max(helps, key=lambda g: g.interval.value)
        words.append(
            f"Worth it: {_points(top.interval)} points with {top.labels:,} labels"
            f" ({top.best} against {top.other})."
        )
        later = [g for g in gains if g.labels > helps[-1].labels]
        if later:
            words.append(f"From {later[0].labels:,} labels on no gain is seen.")
        elif helps[-1] != top:
            words.append(f"It still adds {_points(helps[-1].interval)} with {helps[-1].labels:,}.")
    else:
        words.append(f"Not shown to be worth it: no gain at {_counts(gains)} labels.")
    if harms:
        words.append(f"It harms at {_counts(harms)} labels.")
    simple = [g for g in gains if _simple(points, g) >= _mean(points, g.best, g.labels)]
    if simple:
        most = simple[-1]
        words.append(
            f"With {_counts(simple)} labels color or gradient histograms do as well or better"
            f" without any network: {100 * _simple(points, most):.1f} against"
            f" {100 * _mean(points, most.best, most.labels):.1f} % with {most.labels:,}."
        )
    return " ".join(words)


def table(verdict: Verdict) -> Table:
    """A row an arm, a column a number of labels; the last row is the gain."""
    view = Table(caption="% of test pictures named rightly; 95 % t-interval over seeds")
    view.add_column("arm", overflow="fold")
    counts = [g.labels for g in verdict.gains]
    for n in counts:
        view.add_column(f"{n:,} labels", justify="right")
    held = {(p.arm, p.labels): p.interval for p in verdict.points}
    for arm in dict.fromkeys(p.arm for p in verdict.points):
        view.add_row(arm, *(_percent(held[arm, n]) for n in counts))
    view.add_section()
    view.add_row("gain of pretraining", *(_points(g.interval) for g in verdict.gains))
    return view


def plot(verdict: Verdict, path: Path) -> None:
    """A PNG: accuracy over labels, a line an arm, bars for the intervals."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    counts = [g.labels for g in verdict.gains]
    top = min(1.0, 1.1 * max(max(p.values) for p in verdict.points))
    span = np.log(max(counts) / min(counts)) or 1.0

    def at(labels: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * np.log(labels / min(counts)) / span
        return float(x), HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(value, 0), top) / top

    for n in counts:
        pen.text((at(n, 0.0)[0] - 12, HEIGHT - BOTTOM + 8), f"{n:,}", "black", font)
    for value in np.linspace(0, top, 6).tolist():
        pen.line((*at(counts[0], value), *at(max(counts), value)), "#DDDDDD")
        pen.text((8, at(counts[0], value)[1] - 8), f"{100 * value:.0f} %", "black", font)
    pen.text((LEFT, HEIGHT - 22), "labels (test accuracy, 95 % over seeds)", "black", font)
    for i, arm in enumerate(dict.fromkeys(p.arm for p in verdict.points)):
        color = GRAY if arm in TRIVIAL else COLORS[i % len(COLORS)]
        mine = sorted((p for p in verdict.points if p.arm == arm), key=lambda p: p.labels)
        pen.line([at(p.labels, p.interval.value) for p in mine], color, 3)
        for p in mine:
            pen.line([at(p.labels, p.interval.low), at(p.labels, p.interval.high)], color, 1)
        pen.text((WIDTH - RIGHT + 16, TOP + 22 * i), arm[-38:], color, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _check(question: Question) -> None:
    if question.seeds < 2:
        raise ValueError(f"setting seeds: {question.seeds} has no spread; give 2 or more")
    if len(set(question.weights)) < len(question.weights):
        raise ValueError("setting beside: the same weights stand there twice; name others")


def _measure(
    question: Question, loaded: Sequence[Loaded], train: Source, test: Source
) -> Iterator[tuple[str, int, Hits]]:
    """Arm, number of labels and answers, seed by seed."""
    main = loaded[0]
    told = counter("verdict")
    arms = len(loaded) + 1
    done, total = 0, question.seeds * len(question.labels) * arms
    normalize = baselines.unit(train, question.workers)
    bank, query = (baselines.describe(s, question.workers, normalize) for s in (train, test))
    kept = [_data(one, train, test, question) for one in loaded]
    for seed in range(question.seeds):
        control = _data(weights.control(main, seed), train, test, question)
        for count in question.labels:
            chosen = few_labels.choose(train, count, seed)
            for name, hits in few_labels.trivial(bank, query, control, chosen).items():
                yield name, count, hits
            for names, data in zip(
                (WITHOUT, *(_own(name) for name in question.weights)),
                (control, *kept),
                strict=True,
            ):
                yield names[0], count, few_labels.frozen(data, chosen)
                yield (
                    names[1],
                    count,
                    few_labels.trained(data, chosen, data.model, question.steps),
                )
                done += 1
                told(done, total)


def _data(one: Loaded, train: Source, test: Source, question: Question) -> Data:
    return Data(
        one.backbone.to(distributed.device()),
        train,
        test,
        normalize=one.normalize,
        threads=question.workers,
    )


def _own(name: str) -> tuple[str, str]:
    return f"{name}, frozen", f"{name}, all layers"


def _mean(points: Sequence[Point], arm: str, labels: int) -> float:
    return next(float(np.mean(p.values)) for p in points if (p.arm, p.labels) == (arm, labels))


def _simple(points: Sequence[Point], at: Gain) -> float:
    """The best mean of what needs no network."""
    return max(_mean(points, name, at.labels) for name in TRIVIAL)


def _counts(gains: Sequence[Gain]) -> str:
    return ", ".join(f"{g.labels:,}" for g in gains)


def _points(interval: Interval) -> str:
    ends = f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
    return f"{100 * interval.value:+.1f} ({ends})"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} ± {50 * (interval.high - interval.low):.1f}"
