"""How time and memory of mechanisms of attention grow with the size of the map.

Every arm takes the same map and gives one of the same shape, forward and backward, arms of a size
in turn. `memory` is the most that was alive above weights and input at any time: on a GPU the
allocator's own figure; on a CPU the sum of all living results of torch's operations, without what
an operation keeps to itself while it runs. `growth` is the exponent of each in the number of
positions, between the two largest maps: 1 is linear, 2 is all pairs. Peers are the layers of timm
and, where it is installed, lambda-networks with the same weights and the same arithmetic; `beside`
is our time over theirs, of each size the median over the rounds.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from .. import __version__
from ..attention import (
    DisentangledNonLocal,
    GlobalContext,
    GlobalLambda,
    LambdaLayer,
    LocalLambda,
    LocalRelation,
    NonLocal,
)
from ..engine.distributed import device as this_device
from . import Work, interleave, machine, spread
from .memory import peak

HEADS, DEPTH, SCOPE = 4, 16, 23
# Pixels of the picture.
PANEL, MARGIN, LEGEND = 420, 60, 190
COLORS = (
    "#1b6ca8",
    "#d1495b",
    "#edae49",
    "#00798c",
    "#6a4c93",
    "#66a182",
    "#8d6a4f",
    "#333333",
    "#c77dff",
)


class SelfAttention(nn.Module):
    """Plain attention of several heads between all positions; `fused` never holds the table."""

    def __init__(self, channels: int, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, HEADS, -1)).transpose(3, 4)
        q, k, v = qkv.contiguous().unbind(1)  # fused kernels want channels side by side
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v  # [B, heads, N, D]
        return self.out(y.mT.flatten(1, 2).unflatten(2, x.shape[2:]))


Make = Callable[[int, int], nn.Module]  # from channels and the side of the map

ARMS: dict[str, Make] = {
    "convolution 3x3": lambda c, side: nn.Conv2d(c, c, 3, padding=1),
    "self-attention": lambda c, side: SelfAttention(c, fused=False),
    "self-attention fused": lambda c, side: SelfAttention(c, fused=True),
    "non-local": lambda c, side: NonLocal(c),
    "disentangled non-local": lambda c, side: DisentangledNonLocal(c),
    "global context": lambda c, side: GlobalContext(c),
    "local relation 7x7": lambda c, side: LocalRelation(c),
    "lambda 23x23": lambda c, side: LambdaLayer(c, c, LocalLambda(), heads=HEADS),
    "lambda global": lambda c, side: LambdaLayer(c, c, GlobalLambda((side, side)), heads=HEADS),
}


def peers() -> dict[str, tuple[str, Make]]:
    """Public layers: the arm they are the twin of, and how they are made."""
    from timm.layers.global_context import GlobalContext as TimmContext
    from timm.layers.lambda_layer import LambdaLayer as TimmLambda
    from timm.layers.non_local_attn import NonLocalAttn

    def timm_lambda(c: int, **scope: Any) -> nn.Module:
        return TimmLambda(c, num_heads=HEADS, dim_head=DEPTH, **scope)

    found: dict[str, tuple[str, Make]] = {
        "timm lambda 23x23": ("lambda 23x23", lambda c, side: timm_lambda(c, r=SCOPE)),
        "timm lambda global": (
            "lambda global",
            lambda c, side: timm_lambda(c, r=None, feat_size=(side, side)),
        ),
        "timm non-local": ("non-local", lambda c, side: NonLocalAttn(c, rd_channels=c // 2)),
        "timm global context": (
            "global context",
            lambda c, side: TimmContext(
                c, fuse_add=True, fuse_scale=False, rd_channels=c // 16 or 1
            ),
        ),
    }
    if find_spec("lambda_networks"):
        from lambda_networks import LambdaLayer as PublicLambda  # type: ignore[import-untyped]

        def public(c: int, **scope: Any) -> nn.Module:
            return PublicLambda(c, dim_out=c, dim_k=DEPTH, heads=HEADS, dim_u=1, **scope)

        found |= {
            "lambda-networks 23x23": ("lambda 23x23", lambda c, side: public(c, r=SCOPE)),
            "lambda-networks global": ("lambda global", lambda c, side: public(c, n=side)),
        }
    return found


def run_attention(
    *,
    sizes: tuple[int, ...],
    channels: int,
    batch_size: int,
    rounds: int,
    names: Sequence[str] = tuple(ARMS),
    beside: bool = False,
) -> dict[str, Any]:
    """Seconds and bytes of every arm at every size, and how they grow; `beside` adds peers."""
    if len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"setting sizes: {sizes}; give two or more, each larger than the last")
    if channels % 8:
        raise ValueError(f"setting channels: {channels}; choose a multiple of 8")
    others = {k: v for k, v in peers().items() if v[0] in names} if beside else {}
    makes = {name: ARMS[name] for name in names} | {k: make for k, (_, make) in others.items()}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in makes}
    ratios: dict[str, list[float]] = {f"{own} / {k}": [] for k, (own, _) in others.items()}
    for side in sizes:
        works = {name: _work(make, channels, side, batch_size) for name, make in makes.items()}
        bytes_ = {name: peak(work) for name, work in works.items()}
        times = interleave(works, rounds)
        for name, seconds in times.items():
            row = {"size": side, "seconds": spread(seconds), "bytes": bytes_[name]}
            rows[name].append(row)
        for k, (own, _) in others.items():
            pairs = zip(times[own], times[k], strict=True)
            ratios[f"{own} / {k}"].append(statistics.median(a / b for a, b in pairs))
    settings = {
        "sizes": sizes,
        "channels": channels,
        "batch_size": batch_size,
        "rounds": rounds,
        "heads": HEADS,
    }
    return {
        "bench": "attention",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {"torch": torch.__version__, "saccade": __version__},
        "settings": settings,
        "arms": {name: {"rows": r, "growth": growth(r)} for name, r in rows.items()},
        "beside": ratios,
    }


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Exponents in the number of positions, between the last two rows."""
    (a, b) = rows[-2:]
    step = 2 * math.log(b["size"] / a["size"])
    return {
        "time": math.log(b["seconds"]["median"] / a["seconds"]["median"]) / step,
        "memory": math.log(b["bytes"] / a["bytes"]) / step,
    }


def _work(make: Make, channels: int, side: int, batch_size: int) -> Work:
    torch.manual_seed(0)
    device = this_device()
    layer = make(channels, side).to(device)
    x = torch.randn(batch_size, channels, side, side, device=device, requires_grad=True)

    def work() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).square().mean().backward()

    return work


def show(found: dict[str, Any]) -> None:
    """Milliseconds and megabytes of every arm and size, as a table."""
    from rich.console import Console
    from rich.table import Table

    settings = found["settings"]
    view = Table(
        title=f"forward and backward, {settings['channels']} channels, "
        f"batch {settings['batch_size']}: ms and MB, and exponents of growth",
        caption=f"medians of {settings['rounds']} interleaved rounds",
    )
    view.add_column("what")
    for side in settings["sizes"]:
        view.add_column(f"{side} x {side}", justify="right")
    view.add_column("growth", justify="right")
    for name, arm in found["arms"].items():
        cells = [
            f"{row['seconds']['median'] * 1e3:.1f}  {row['bytes'] / 1e6:.1f}" for row in arm["rows"]
        ]
        exponents = f"{arm['growth']['time']:.2f}  {arm['growth']['memory']:.2f}"
        view.add_row(name, *cells, exponents)
    Console().print(view)
    if found["beside"]:
        view = Table(title="our time / theirs", caption="the same weights, medians of the rounds")
        view.add_column("ours / theirs")
        for side in settings["sizes"]:
            view.add_column(f"{side} x {side}", justify="right")
        for name, values in found["beside"].items():
            view.add_row(name, *(f"{value:.2f}" for value in values))
        Console().print(view)


def plot(found: dict[str, Any], path: Path) -> None:
    """Time and memory over the side of the map, both axes logarithmic, into a picture."""
    sheet = Image.new("RGB", (2 * PANEL + LEGEND, PANEL), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    lines = {
        "ms": {n: [r["seconds"]["median"] * 1e3 for r in a["rows"]] for n, a in _arms(found)},
        "MB": {n: [r["bytes"] / 1e6 for r in a["rows"]] for n, a in _arms(found)},
    }
    sizes = found["settings"]["sizes"]
    for i, (unit, curves) in enumerate(lines.items()):
        _panel(pen, font, i * PANEL, unit, sizes, curves)
    for i, (name, _) in enumerate(_arms(found)):
        y = MARGIN + 20.0 * i
        _curve(pen, [(2.0 * PANEL, y), (2.0 * PANEL + 24, y)], i)
        pen.text((2 * PANEL + 32, y), name, "black", font, anchor="lm")
    sheet.save(path)


def _arms(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(found["arms"].items())


def _panel(
    pen: ImageDraw.ImageDraw,
    font: Any,
    left: int,
    unit: str,
    sizes: tuple[int, ...],
    curves: dict[str, list[float]],
) -> None:
    values = [v for curve in curves.values() for v in curve]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    span = PANEL - 2 * MARGIN

    def place(size: int, value: float) -> tuple[float, float]:
        across = math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])
        up = (math.log10(value) - low) / (high - low)
        return left + MARGIN + span * across, MARGIN + span * (1 - up)

    for power in range(low, high + 1):
        x, y = place(sizes[0], 10.0**power)
        pen.line([(x, y), (x + span, y)], "#dddddd")
        pen.text((x - 6, y), f"{10.0**power:g}", "black", font, anchor="rm")
    for size in sizes:
        x, y = place(size, 10.0**low)
        pen.text((x, y + 6), str(size), "black", font, anchor="mt")
    pen.text((left + MARGIN, MARGIN - 24), f"{unit}, forward and backward", "black", font)
    middle = left + PANEL / 2
    pen.text((middle, PANEL - 24), "side of the map", "black", font, anchor="mm")
    for i, curve in enumerate(curves.values()):
        _curve(pen, [place(s, v) for s, v in zip(sizes, curve, strict=True)], i)


def _curve(pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], i: int) -> None:
    color = COLORS[i % len(COLORS)]
    pen.line(points, color, 2)
    for x, y in points:
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), color)
