"""Two backbones on the same test pictures: the difference, its interval, and a paired test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from .interval import paired, paired_p
from .results import Result, answers, shown

# Pixels of the plot.
ROW, LEFT, WIDTH, RIGHT, TOP, DOT = 22, 330, 420, 110, 28, 4
# Okabe and Ito's colors, which the color-blind tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRAY = "#999999"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much better the second model is on the pictures that both answered."""

    model: str
    than: str
    protocol: str
    metric: str
    difference: float
    low: float  # ends of the 95 % paired bootstrap interval
    high: float
    p: float  # two-sided: McNemar's exact test, or random signs
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def compare(results: Sequence[Result], than: str, seed: int = 0) -> list[Comparison]:
    """Every other model against `than`, figure by figure, where both have values per picture."""
    base = {(r.protocol, r.metric): r for r in results if r.model == than and r.hits}
    found = []
    for r in results:
        before = base.get((r.protocol, r.metric))
        if before is None or r.model == than:
            continue
        a, b = answers(before, r)
        gap = paired(a, b, seed)
        found.append(
            Comparison(
                model=r.model,
                than=than,
                protocol=r.protocol,
                metric=r.metric,
                difference=gap.value,
                low=gap.low,
                high=gap.high,
                p=paired_p(a, b, seed),
                n=r.n,
            )
        )
    return found


def table(found: Iterable[Comparison]) -> Table:
    """A row a comparison, in points of percent."""
    view = Table(caption="paired over test pictures; 95 % bootstrap interval; two-sided p")
    for name in ("model", "against"):
        view.add_column(name, overflow="fold")
    for name in ("protocol", "metric"):
        view.add_column(name, no_wrap=True)
    for name in ("points", "interval", "p"):
        view.add_column(name, justify="right")
    for c in found:
        interval = f"{100 * c.low:+.1f} to {100 * c.high:+.1f}"
        row = (c.model, c.than, c.protocol, c.metric, f"{100 * c.difference:+.1f}", interval)
        view.add_row(*row, f"{c.p:.2g}")
    return view


def plot(results: Sequence[Result], path: Path) -> None:
    """A PNG: each figure a dot on its interval, models of one figure below each other."""
    keys = list(dict.fromkeys((r.protocol, r.metric) for r in results))
    models = list(dict.fromkeys(r.model for r in results))
    height = TOP + sum(ROW * (1 + sum(_key(r) == k for r in results)) for k in keys) + ROW
    sheet = Image.new("RGB", (LEFT + WIDTH + RIGHT, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    y = TOP
    for key in keys:
        rows = [r for r in results if _key(r) == key]
        low, high = _range(rows, results)
        pen.text((10, y), f"{key[0]}  {key[1]}", "black", font)
        pen.line((LEFT, y + ROW, LEFT, y + ROW * (1 + len(rows))), GRAY)
        y += ROW
        for r in rows:
            x = [LEFT + WIDTH * (v - low) / (high - low) for v in (r.low, r.value, r.high)]
            color, middle = COLORS[models.index(r.model) % len(COLORS)], y + ROW / 2
            pen.text((24, y + 3), r.model[-42:], color, font)
            pen.line((x[0], middle, x[2], middle), color, 2)
            pen.ellipse((x[1] - DOT, middle - DOT, x[1] + DOT, middle + DOT), color)
            value, bottom, top = shown(r)
            pen.text((LEFT + WIDTH + 8, y + 3), f"{value} ({bottom}-{top})", color, font)
            y += ROW
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _key(r: Result) -> tuple[str, str]:
    return r.protocol, r.metric


def _range(rows: Sequence[Result], results: Sequence[Result]) -> tuple[float, float]:
    """What the axis of one figure covers: all shares the same from 0, numbers where they lie."""
    if rows[0].unit == "%":
        return 0.0, max(1e-9, *(r.high for r in results if r.unit == "%"))
    low, high = min(r.low for r in rows), max(r.high for r in rows)
    return low, high if high > low else low + 1
