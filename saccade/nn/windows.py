"""Attention inside windows that shift from block to block (Swin, Liu et al. 2021, 2103.14030)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@contextmanager
def unfused(attention: Any, hook: Callable[[Any, Any, Tensor], None]) -> Iterator[None]:
    """timm hands softmaxed weights to `attn_drop`, where no fused kernel keeps them to itself."""
    before = vars(attention).get("fused_attn", False)  # Swin V2 has no fused one
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        attention.fused_attn = before


def window_cells(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Int[Tensor, "n a"]:
    """Which cell stands where in each window of a shifted map; -1 is padding."""
    cells = torch.arange(grid[0] * grid[1]).view(grid)
    cells = cells.roll((-shift[0], -shift[1]), (0, 1))
    pad = [-side % w for side, w in zip(grid, window, strict=True)]
    cells = F.pad(cells, (0, pad[1], 0, pad[0]), value=-1)
    cells = cells.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))
    return cells.transpose(1, 2).flatten(2).flatten(0, 1)


def received(
    weights: Float[Tensor, "m heads a a"], cells: Int[Tensor, "n a"]
) -> Float[Tensor, "b k"]:
    """Attention that each cell gets: the mean over heads and over the cells of its window.

    `weights` has the n windows of each of b maps after each other, a row for every query.
    """
    cells = cells.to(weights.device)
    real = cells >= 0  # [n, a]
    asked = weights.mean(1).unflatten(0, (-1, len(cells))).masked_fill(~real[..., None], 0.0)
    mean = asked.sum(2) / real.sum(1, keepdim=True)  # [b, n, a]
    found = mean.new_zeros(len(mean), int(real.sum()))
    found[:, cells[real]] = mean[:, real]
    return found
