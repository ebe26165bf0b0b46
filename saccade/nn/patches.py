"""Pictures as patches of pixels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def patchify(x: Float[Tensor, "b c H W"], p: int) -> Float[Tensor, "b n q"]:
    """Pixels by patch in raster order, each in the order row, column, channel."""
    x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, h, p, w, p]
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(
    x: Float[Tensor, "b n q"], p: int, grid: tuple[int, int]
) -> Float[Tensor, "b c H W"]:
    """The picture of which `patchify` gives these patches."""
    x = x.unflatten(2, (p, p, -1)).unflatten(1, grid)  # [B, h, w, p, p, C]
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def normalize_patches(x: Float[Tensor, "b n q"]) -> Float[Tensor, "b n q"]:
    """Zero mean and unit unbiased variance over each patch; 0 where its values are equal."""
    var, mean = torch.var_mean(x, -1, keepdim=True)
    return (x - mean) / (var + 1e-6).sqrt()


def like_patches(
    x: Float[Tensor, "b n q"], other: Float[Tensor, "b n q"]
) -> Float[Tensor, "b n q"]:
    """Normalized patches with the mean and contrast of others: undoes `normalize_patches`."""
    var, mean = torch.var_mean(other, -1, keepdim=True)
    return x * (var + 1e-6).sqrt() + mean


def enlarged(cells: Bool[Tensor, "b h w"], times: int) -> Bool[Tensor, "b H W"]:
    """Every cell as a square of so many."""
    return cells.repeat_interleave(times, 1).repeat_interleave(times, 2)


def drawn(
    image: Float[Tensor, "b c H W"], guess: Float[Tensor, "b c H W"], hidden: Bool[Tensor, "b H W"]
) -> dict[str, Float[Tensor, "b c H W"]]:
    """The picture, what is seen of it, what is predicted where it is hidden, and both together."""
    image, at = image.float(), hidden[:, None]
    return {
        "picture": image,
        "seen": image.masked_fill(at, torch.nan),
        "predicted": guess.masked_fill(~at, torch.nan),
        "both": torch.where(at, guess, image),
    }
