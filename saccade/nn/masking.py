"""Which patches a model may see."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .random import uniform

TRIES, IN_VAIN = 64, 10  # rectangles drawn for a mask, and how many in a row may add nothing


def kept_patches(patches: int, mask_ratio: float) -> int:
    """How many patches stay, rounded down: 100 patches at ratio .9 keep 9, as in MAE's code."""
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        raise ValueError(
            f"setting method.mask_ratio: {mask_ratio} keeps {kept} of {patches} patches;"
            " keep at least one and hide at least one"
        )
    return kept


def random_order(key: Int[Tensor, "b"], patches: int) -> Int[Tensor, "b patches"]:
    """A permutation of the patches for each key: the first ones are kept.

    It depends on nothing but the key. `argsort` along axis 1 brings it back to raster order.
    """
    return uniform(key, patches, "mask").argsort(dim=1, stable=True)


def hide(
    tokens: Float[Tensor, "b n d"],
    positions: Float[Tensor, "1 n d"],
    mask: Bool[Tensor, "b n"],
    mask_token: Float[Tensor, "d"],
) -> Float[Tensor, "b n d"]:
    """Patches with the masked ones' embedding replaced, each where it was."""
    return torch.where(mask[..., None], (mask_token + positions).to(tokens.dtype), tokens)


def block_masks(
    key: Int[Tensor, "b"],
    count: Float[Tensor, "b"],
    grid: tuple[int, int],
    name: str,
    *,
    least: int = 0,
) -> Bool[Tensor, "b n"]:
    """At most `count` masked patches for each key, in rectangles (Bao et al. 2021, BEiT).

    A rectangle has an area between `least`, or (shorter side // 3)^2, and what is still to be
    masked, and a ratio of its sides between .3 and 1/.3. One that does not fit, adds nothing or too
    much is passed over; ten in a row end the mask.
    """
    return _blocks(key, count, grid, name, least or (min(grid) // 3) ** 2, TRIES, IN_VAIN)[0]


def exact_block_masks(
    key: Int[Tensor, "b"], count: int, grid: tuple[int, int], name: str, *, least: int
) -> Bool[Tensor, "b n"]:
    """Exactly `count` masked patches for each key, in rectangles (Chen et al. 2022, CAE).

    As `block_masks`, but it does not give up: 2 TRIES rectangles, then single patches anywhere. Of
    masks of 98 in 14 x 14 patches, one in a thousand lacks a patch after the rectangles.
    """
    goal = torch.full(key.shape, float(count), device=key.device)
    mask, left = _blocks(key, goal, grid, name, least, 2 * TRIES, 2 * TRIES)
    lot = uniform(key, mask.shape[1], f"{name} rest").masked_fill(mask, 2.0)
    return mask | (lot.argsort(dim=1, stable=True).argsort(1) < left[:, None])


@torch.compiler.disable()  # a loop over draws, unrolled, would be thousands of nodes
def _blocks(
    key: Int[Tensor, "b"],
    count: Float[Tensor, "b"],
    grid: tuple[int, int],
    name: str,
    least: int,
    tries: int,
    in_vain: int,
) -> tuple[Bool[Tensor, "b n"], Float[Tensor, "b"]]:
    """Rectangles of masked patches, and how many patches are still to be masked."""
    rows, columns = grid
    draws = uniform(key, 4 * tries, name).unflatten(1, (tries, 4)).unbind(1)
    y = torch.arange(rows, device=key.device)[:, None]
    x = torch.arange(columns, device=key.device)
    mask = torch.zeros(len(key), rows, columns, dtype=torch.bool, device=key.device)
    left = count
    vain = torch.zeros_like(key)
    for area, ratio, top, start in (d.unbind(1) for d in draws):
        size = least + area * (left - least)
        stretch = ((2 * ratio - 1) * math.log(1 / 0.3)).exp()
        h, w = (size * stretch).sqrt().round(), (size / stretch).sqrt().round()
        top, start = (top * (rows - h + 1)).floor(), (start * (columns - w + 1)).floor()
        at = [v[:, None, None] for v in (top, top + h, start, start + w)]
        more = mask | ((y >= at[0]) & (y < at[1]) & (x >= at[2]) & (x < at[3]))
        new = (more.sum((1, 2)) - mask.sum((1, 2))).float()
        good = (h < rows) & (w < columns) & (new > 0) & (new <= left) & (vain < in_vain)
        mask = torch.where(good[:, None, None], more, mask)
        left = left - new * good
        vain = torch.where(good, 0, vain + 1)
    return mask.flatten(1), left
