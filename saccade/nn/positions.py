"""Fixed position tables, and the widths that have one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "n dim"]:
    """Sines and cosines of the column in the first half of the channels, of the row in the second.

    Rows of the table are patches in raster order. Each half is [sin(x w_k) | cos(x w_k)] with
    w_k = 10000^(-k / (dim/4)). Column first is MAE's official code; other papers put rows first.
    """
    if dim % 4:
        raise ValueError(f"a sine-cosine position table needs a width divisible by 4, not {dim}")
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    frequency = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    angle = torch.stack([column.flatten(), row.flatten()], 1)[..., None] * frequency  # [N, 2, D/4]
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1).float()


def check_width(part: str, dim: int, heads: int) -> None:
    """Refuse a transformer of `method.<part>_dim` channels without a table, or without heads."""
    if dim < 4 or dim % 4:
        raise ValueError(
            f"setting method.{part}_dim: {dim} channels; sines and cosines of rows and columns need"
            f" a multiple of 4, such as {max(dim // 4, 1) * 4}"
        )
    if heads < 1 or dim % heads:
        near = next(h for h in range(min(max(heads, 1), dim), 0, -1) if dim % h == 0)
        raise ValueError(
            f"setting method.{part}_heads: {heads} heads do not share {dim} channels evenly; choose"
            f" a divisor of method.{part}_dim, such as {near}"
        )
