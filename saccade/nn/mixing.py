"""Pictures of a batch mixed with each other, and their soft labels likewise.

mixup: Zhang et al. 2018, arXiv:1710.09412. CutMix: Yun et al. 2019, arXiv:1905.04899. Random
erasing: Zhong et al. 2020, arXiv:1708.04896. As DeiT and MAE train: one draw for a batch, partners
in reversed order. Draws come from the global seed. A rectangle to erase that does not fit is cut to
the picture, where timm draws another.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ERASED = (0.02, 1 / 3)  # range of area, and of height / width from .3 to its inverse
TALL = 0.3
Box = tuple[int, int, int, int]  # top, left, height, width


def soft(labels: Int[Tensor, "b"], classes: int, smoothing: float = 0.0) -> Float[Tensor, "b k"]:
    """Labels as probabilities: 1 - smoothing, and smoothing over all classes; -1 gives zeros."""
    hard = F.one_hot(labels.clamp_min(0), classes).float()
    return (hard * (1 - smoothing) + smoothing / classes) * (labels >= 0)[:, None]


def soft_cross_entropy(
    logits: Float[Tensor, "b k"], target: Float[Tensor, "b k"]
) -> Float[Tensor, ""]:
    """Mean over pictures; rows of `target` need not sum to 1."""
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def mixed(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b k"], mixup: float, cutmix: float
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Pictures and labels mixed with those of the reversed batch, by mixup or by CutMix."""
    if not mixup and not cutmix:
        return x, y
    cutting = cutmix > 0 and (not mixup or torch.rand(()).item() < 0.5)
    strength = cutmix if cutting else mixup
    share = torch.distributions.Beta(strength, strength).sample().item()
    if not cutting:
        return share * x + (1 - share) * x.flip(0), share * y + (1 - share) * y.flip(0)
    top, left, height, width = hole(x.shape[2], x.shape[3], 1 - share)
    x = x.clone()
    part = (slice(top, top + height), slice(left, left + width))
    x[:, :, *part] = x.flip(0)[:, :, *part]
    share = 1 - height * width / (x.shape[2] * x.shape[3])
    return x, share * y + (1 - share) * y.flip(0)


def hole(height: int, width: int, area: float) -> Box:
    """A rectangle of the picture's shape about a random point, cut off at the edges."""
    side = math.sqrt(area)
    ends = []
    for size in (height, width):
        middle, half = int(torch.randint(size, ()).item()), int(size * side) // 2
        ends.append((max(middle - half, 0), min(middle + half, size)))
    (top, bottom), (left, right) = ends
    return top, left, bottom - top, right - left


def erased(x: Float[Tensor, "b c h w"], chance: float) -> Float[Tensor, "b c h w"]:
    """Pictures of which some have normal noise over a rectangle."""
    if not chance:
        return x
    x = x.clone()
    for picture, happens in zip(x, (torch.rand(len(x)) < chance).tolist(), strict=True):
        if happens:
            top, left, height, width = patch(*x.shape[2:])
            part = picture[:, top : top + height, left : left + width]
            part.copy_(torch.randn_like(part))
    return x


def patch(height: int, width: int) -> Box:
    """A rectangle of a random area and shape that lies within the picture."""
    area, shape, down, right = torch.rand(4).tolist()
    pixels = height * width * (ERASED[0] + area * (ERASED[1] - ERASED[0]))
    ratio = TALL ** (1 - 2 * shape)
    h = min(round(math.sqrt(pixels * ratio)), height)
    w = min(round(math.sqrt(pixels / ratio)), width)
    return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
