"""What the cells of feature maps have to do with each other, and which of them attention holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

BRIGHTEST = 0.01  # share of cells at each end of a component that are cut off in colors


def cell_at(x: float, y: float, grid: tuple[int, int]) -> int:
    """Raster number of the cell that holds a point, x and y as shares of the picture's sides."""
    rows, columns = grid
    return min(int(y * rows), rows - 1) * columns + min(int(x * columns), columns - 1)


def box_of(cell: int, grid: tuple[int, int]) -> tuple[float, float, float, float]:
    """The cell's x, y, x, y as shares of the picture's sides."""
    rows, columns = grid
    y, x = divmod(cell, columns)
    return x / columns, y / rows, (x + 1) / columns, (y + 1) / rows


def principal(x: Float[Tensor, "n d"], count: int = 3) -> Float[Tensor, "n k"]:
    """Coordinates along the first principal components, zeros where there are no more of them.

    Each component points to where its largest weight is positive.
    """
    x = (x - x.mean(0)).double()
    n, d = x.shape
    if n <= d:  # the smaller of the two tables of products
        _, u = torch.linalg.eigh(x @ x.mT)
        axes = F.normalize(u.mT.flip(0)[:count] @ x, dim=1)  # [K, D]
    else:
        _, v = torch.linalg.eigh(x.mT @ x)
        axes = v.mT.flip(0)[:count]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    y = x @ (axes * torch.where(largest < 0, -1.0, 1.0)).mT
    return F.pad(y, (0, count - y.shape[1])).float()


def colored(y: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Each component in [0, 1], but for the few cells beyond its range."""
    low = torch.quantile(y, BRIGHTEST, 0)
    high = torch.quantile(y, 1 - BRIGHTEST, 0)
    return ((y - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def foreground(
    first: Float[Tensor, "n"], border: Bool[Tensor, "n"], least: int = 8
) -> Bool[Tensor, "n"]:
    """The side of the first component's mean that lies less along the pictures' borders.

    All cells where that side has fewer than `least`.
    """
    above = first > first.mean()
    sides = [above, ~above]
    chosen = min(sides, key=lambda s: float(border[s].float().mean()) if bool(s.any()) else 1.0)
    return chosen if int(chosen.sum()) >= least else torch.ones_like(chosen)


def border(grid: tuple[int, int]) -> Bool[Tensor, "n"]:
    """The cells along the edge of a map."""
    edge = torch.ones(grid, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    return edge.flatten()


def cosines(query: Float[Tensor, "d"], x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    return F.normalize(x.float(), dim=-1) @ F.normalize(query.float(), dim=0)


def nearest(
    query: Float[Tensor, "d"],
    maps: Sequence[Float[Tensor, "_ d"]],
    top: int,
    without: int | None = None,
) -> list[tuple[int, int, float]]:
    """Map, cell and cosine of the cells most like the query, the nearest first.

    `without` is a cell of the first map that is left out.
    """
    found = [
        (i, cell, cosine)
        for i, x in enumerate(maps)
        for cell, cosine in enumerate(cosines(query, x).tolist())
        if (i, cell) != (0, without)
    ]
    return sorted(found, key=lambda f: -f[2])[:top]


def mass_mask(attention: Float[Tensor, "*b n"], mass: float = 0.6) -> Bool[Tensor, "*b n"]:
    """The fewest cells that hold at least that share of each row's sum.

    Of equal cells the first ones are taken.
    """
    share = attention.double() / attention.double().sum(-1, keepdim=True)
    value, order = share.sort(dim=-1, descending=True, stable=True)
    before = value.cumsum(-1) - value  # what the larger ones hold
    return torch.zeros_like(share, dtype=torch.bool).scatter(-1, order, before < mass)


def entropy(attention: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """Of rows scaled to sum 1, over that of a uniform one: in [0, 1]."""
    share = attention.double() / attention.double().sum(-1, keepdim=True)
    most = torch.tensor(attention.shape[-1], dtype=torch.float64).log().clamp_min(1e-12)
    return (torch.special.entr(share).sum(-1) / most).float()
