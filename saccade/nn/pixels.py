"""Cells of the maps of two crops, and where they lie in the picture that both were cut from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def cells(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n d"]:
    """Unit vectors of the cells of a map, in raster order."""
    return F.normalize(x.flatten(2).mT.float(), dim=-1)


def centers(
    box: Float[Tensor, "b 4"], flip: Bool[Tensor, "b"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "b columns"], Float[Tensor, "b rows"]]:
    """x of each column and y of each row of a crop's map, as shares of the picture's sides.

    A mirrored crop has its columns from right to left.
    """
    box = box.float()
    left, right = torch.where(flip, box[:, 2], box[:, 0]), torch.where(flip, box[:, 0], box[:, 2])
    along = []
    for count, low, high in ((grid[1], left, right), (grid[0], box[:, 1], box[:, 3])):
        at = (torch.arange(count, device=box.device) + 0.5) / count
        along.append(low[:, None] + at * (high - low)[:, None])
    return along[0], along[1]


def bin_distances(
    boxes: tuple[Float[Tensor, "b 4"], Float[Tensor, "b 4"]],
    flips: tuple[Bool[Tensor, "b"], Bool[Tensor, "b"]],
    grid: tuple[int, int],
) -> Float[Tensor, "b n n"]:
    """Distance of every cell of the first crop to every cell of the second, in raster order.

    In units of the longer one of the diagonals of the two crops' cells. Distances are taken in
    shares of the picture's sides.
    """
    columns, rows = zip(
        *(centers(b, f, grid) for b, f in zip(boxes, flips, strict=True)), strict=True
    )
    dx = (columns[0][:, :, None] - columns[1][:, None]).square()  # [B, w, w]
    dy = (rows[0][:, :, None] - rows[1][:, None]).square()  # [B, h, h]
    apart = (dy[:, :, None, :, None] + dx[:, None, :, None]).flatten(3).flatten(1, 2)  # [B, N, N]
    sides = torch.stack([(b[:, 2:] - b[:, :2]).float() for b in boxes])  # [2, B, 2]
    cells = sides / sides.new_tensor([grid[1], grid[0]])
    return (apart / cells.square().sum(-1).amax(0)[:, None, None]).sqrt()
