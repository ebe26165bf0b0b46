"""What a method of masked patches asks of a tokenizer: codes of a batch, and pictures of codes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core import PixelTokenizer, Views


@torch.no_grad()
def codes_of(tokenizer: PixelTokenizer, batch: Views, grid: tuple[int, int]) -> Int[Tensor, "b n"]:
    """Codes of a batch's only view in raster order, always computed in float32."""
    x = batch.pixels()
    with torch.autocast(x.device.type, enabled=False):
        return tokenizer.encode(x.float(), grid).flatten(1)


@torch.no_grad()
def pictures(
    tokenizer: PixelTokenizer,
    batch: Views,
    grid: tuple[int, int],
    codes: Int[Tensor, "b n"],
    guess: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
) -> dict[str, Float[Tensor, "b c H W"]]:
    """What is seen of a picture, what its codes say, and the same with those guessed at masked
    patches; nothing where the tokenizer has no decoder."""
    image = batch.images[0]
    if not tokenizer.decodes:
        return {}
    size = (image.shape[-2], image.shape[-1])
    mean = image.new_tensor(batch.mean)[:, None, None]
    std = image.new_tensor(batch.std)[:, None, None]

    def paint(chosen: Tensor) -> Tensor:
        return (tokenizer.decode(chosen.unflatten(1, grid), size) - mean) / std

    hidden = mask.unflatten(1, grid)
    for axis, side in ((1, size[0] // grid[0]), (2, size[1] // grid[1])):
        hidden = hidden.repeat_interleave(side, axis)
    return {
        "seen": image.masked_fill(hidden[:, None], torch.nan),
        "codes": paint(codes),
        "predicted": paint(torch.where(mask, guess, codes)),
    }
