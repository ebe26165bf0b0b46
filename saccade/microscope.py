"""What each layer of attention in a network looks at, read while a picture goes through.

A row is the weights of one query over a map of cells. Layers of ours say them (`core.Mechanism`);
timm's transformers compute them where their fused kernels are off. Rows are over the patches alone:
weight on CLS and registers, or on the padding of a window, is left out. Queries are cells at given
places, so that layers with maps of different sizes are asked the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from .core import Backbone, Mechanism
from .drawing.patches import cell_at
from .nn.degeneration import cosine_distance, divergence, mean_entropy, unary_share
from .nn.windows import unfused, window_cells

SEQUENCES = (Attention, AttentionRope, BeitAttention, EvaAttention)
WINDOWS = (SwinTransformerBlock, SwinTransformerV2Block)
GRID = 8  # queries along each side of a picture, for the degeneracy

Point = tuple[float, float]  # x, y as shares of the picture's sides


@dataclass(frozen=True, slots=True)
class Look:
    """One part of one layer: where some cells look."""

    layer: str
    part: str
    grid: tuple[int, int]  # rows and columns of the cells that can be asked
    cells: Int[Tensor, "q"]  # which of them were
    maps: Float[Tensor, "heads q h w"]
    before: Float[Tensor, "_ d"]  # the layer's input at these places
    found: Float[Tensor, "q e"]  # what the layer found for these cells, its input not added


@dataclass(frozen=True, slots=True)
class Degeneracy:
    """How equal the maps of different queries are, over queries spread evenly.

    Means over heads and pairs of rows. Cosines are 1 where all queries are, or see, the same; they
    are near 1 for rows near uniform too, which the unary share tells from those.
    """

    layer: str
    part: str
    queries: int
    value: float  # cosine of the rows
    before: float  # cosine of what goes into the layer
    found: float  # cosine of what it finds
    divergence: float  # Jensen-Shannon, of each fourth query, in nats; NaN for weights below 0
    unary_share: float  # of the logits' spread over cells, what all queries have in common
    entropy: float  # of the mean row, over a uniform one's; NaN for weights below 0


def layers(backbone: nn.Module) -> list[str]:
    """Names of the layers that can be read."""
    return [name for name, _ in _readable(backbone)]


@torch.no_grad()
def look(backbone: Backbone, x: Float[Tensor, "1 c H W"], points: Sequence[Point]) -> list[Look]:
    """What the cells at these places look at, layer by layer; a cell is asked once."""
    found: list[Look] = []
    last: torch.Size | None = None
    with ExitStack() as stack:
        for name, module in _readable(backbone):
            if isinstance(module, Mechanism):
                handle = module.register_forward_hook(_of_mechanism(name, points, found))
                stack.callback(handle.remove)
            elif isinstance(module, WINDOWS):
                stack.enter_context(_of_windows(name, module, points, found))
            else:
                if last is None:
                    last = backbone.features(x).shape[2:]  # of all layers: nothing is pooled
                grid = (last[0], last[1])
                stack.enter_context(_of_sequence(name, module, grid, points, found))
        backbone.features(x)
    return found


def degeneracy(backbone: Backbone, x: Float[Tensor, "1 c H W"]) -> list[Degeneracy]:
    """Of every layer on one picture."""
    steps = [(i + 0.5) / GRID for i in range(GRID)]
    found = []
    for seen in look(backbone, x, [(a, b) for b in steps for a in steps]):
        rows = seen.maps.flatten(2).float()  # [heads, Q, M]
        apart = share = spread = math.nan
        if bool((rows >= 0).all()):
            even = rows / rows.sum(-1, keepdim=True)
            apart = float(divergence(even[:, ::4]).mean())  # it takes time with their square
            spread = float(mean_entropy(even).mean())
            share = _common(rows)
        found.append(
            Degeneracy(
                seen.layer,
                seen.part,
                queries=rows.shape[1],
                value=_cosine(rows),
                before=_cosine(seen.before[None]),
                found=_cosine(seen.found[None]),
                divergence=apart,
                unary_share=share,
                entropy=spread,
            )
        )
    return found


def _common(rows: Float[Tensor, "heads q m"]) -> float:
    """The unary share over the cells that no query gives 0, mean over the heads that have two.

    Logits are known but for a constant of each query, which cancels.
    """
    seen = [row[:, (row > 0).all(0)].log() for row in rows]
    shares = [unary_share(logits[None]) for logits in seen if logits.shape[1] > 1]
    return float(torch.stack(shares).mean()) if shares else math.nan


def _cosine(rows: Float[Tensor, "b n d"]) -> float:
    return float(1 - 2 * cosine_distance(rows.float()).mean())


def _readable(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in backbone.named_modules():
        if isinstance(module, (Mechanism, *WINDOWS)) or type(module) in SEQUENCES:
            yield name.removeprefix("net."), module


def _cells(points: Sequence[Point], grid: tuple[int, int]) -> Int[Tensor, "q"]:
    return torch.tensor(list(dict.fromkeys(cell_at(x, y, grid) for x, y in points)))


def _of_mechanism(
    name: str, points: Sequence[Point], found: list[Look]
) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
    def hook(module: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
        (x,) = given
        grid = (made.shape[2], made.shape[3])
        at = _cells(points, grid)
        before = _at(x, _cells(points, (x.shape[2], x.shape[3])))
        new = _at(made - x if module.adds else made, at)
        for part, maps in module.look(x, at.to(x.device)).items():
            found.append(Look(name, part, grid, at, maps[0].cpu(), before, new))

    return hook


@contextmanager
def _of_sequence(
    name: str,
    attention: Any,
    grid: tuple[int, int],
    points: Sequence[Point],
    found: list[Look],
) -> Iterator[None]:
    seen: list[Tensor] = []
    at = _cells(points, grid)

    def keep(module: Any, given: Any, weights: Float[Tensor, "1 heads p p"]) -> None:
        seen[:] = [weights]

    def hook(module: Any, given: Any, made: Float[Tensor, "1 p d"]) -> None:
        (weights,) = seen
        prefix = weights.shape[-1] - grid[0] * grid[1]
        maps = weights[0, :, prefix:, prefix:][:, at.to(weights.device)]
        before, new = (t[0, prefix:].cpu()[at] for t in (given[0], made))
        found.append(Look(name, "attention", grid, at, maps.unflatten(2, grid).cpu(), before, new))

    handle = attention.register_forward_hook(hook)
    try:
        with unfused(attention, keep):
            yield
    finally:
        handle.remove()


@contextmanager
def _of_windows(
    name: str, block: Any, points: Sequence[Point], found: list[Look]
) -> Iterator[None]:
    size: list[tuple[int, int]] = []
    seen: list[Tensor] = []

    def enter(module: Any, given: tuple[Tensor, ...]) -> None:
        size[:] = [(given[0].shape[1], given[0].shape[2])]

    def keep(module: Any, given: Any, weights: Float[Tensor, "n heads a a"]) -> None:
        seen[:] = [weights]

    def hook(module: Any, given: Any, made: Float[Tensor, "n a d"]) -> None:
        (grid,), (weights,) = size, seen
        at, places = _cells(points, grid), window_cells(grid, block.window_size, block.shift_size)
        maps = weights.new_zeros(weights.shape[1], len(at), grid[0] * grid[1])
        rows = [(places == cell).nonzero()[0].tolist() for cell in at.tolist()]
        for i, (window, slot) in enumerate(rows):
            keys = places[window].to(weights.device)
            maps[:, i, keys[keys >= 0]] = weights[window, :, slot, keys >= 0]
        window, slot = torch.tensor(rows).unbind(1)
        before, new = (t.cpu()[window, slot] for t in (given[0], made))
        found.append(Look(name, "attention", grid, at, maps.unflatten(2, grid).cpu(), before, new))

    handles = block.register_forward_pre_hook(enter), block.attn.register_forward_hook(hook)
    try:
        with unfused(block.attn, keep):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _at(x: Float[Tensor, "1 d h w"], cells: Int[Tensor, "q"]) -> Float[Tensor, "q d"]:
    return x[0].flatten(1).mT.cpu()[cells]
