"""The mean color of a cell as its code: 8 steps of red, green and blue, 512 codes.

Of the first experiment with masked patches (Dosovitskiy et al. 2021, arXiv:2010.11929, appendix
B.1.2). It needs no file and no training.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, stack

from ..core import PixelTokenizer

STEPS = 8  # 3 bits a channel


class Color(PixelTokenizer):
    codes, channels, decodes = STEPS**3, 3, True

    def encode(self, x: Float[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
        mean = F.adaptive_avg_pool2d(x.float(), grid)
        r, g, b = (mean * STEPS).long().clamp(0, STEPS - 1).unbind(1)
        return (r * STEPS + g) * STEPS + b

    def decode(
        self, codes: Int[Tensor, "b h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b 3 H W"]:
        steps = stack([codes // STEPS**2, codes // STEPS % STEPS, codes % STEPS], 1)
        return F.interpolate((steps + 0.5) / STEPS, size, mode="nearest-exact")
