"""Disentangled non-local block: what pairs attend to and what all attend to, apart.

Yin et al. 2020, arXiv:2006.06668. A softmax over q_i . k_j is a product of a pairwise part and of
one that is the same for every query i; here each has its own softmax, and they are added:
    z_i = x_i + gamma sum_j P_ij v_j + sum_j U_j v_j,
    P_ij = softmax_j( (q_i - mean q).(k_j - mean k) / (sqrt d tau) ),    U_j = softmax_j( W_m x_j ).

The block follows the official segmentation code: v keeps all channels, nothing is projected behind
it, and only the pairwise part has the gate gamma, which starts at 0; so the block is close to the
identity at first but not equal to it (mmsegmentation's, which projects the sum through a batch
norm of scale zero, is equal; its weights do not fit here). `whiten` says over what the means run:
positions per channel (the paper), or one number per image, as in the released configurations
called "nowd", which leaves the unary part in; "none" removes nothing, which some released
configurations do by a misspelled name. "nowd" also has no sqrt d and no tau: temperature = d^-1/2;
the weight decay that it is named for not having, no released file takes away. With whitened q and
k their biases change nothing and get no gradient. Left out: keys pooled 2x2, which are off in all
but one released configuration, and the ablation whose unary part is mean q . k in place of W_m x.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Mechanism
from .non_local import single, tokens

Whiten = Literal["channel", "scalar", "none"]


class DisentangledNonLocal(Mechanism):
    adds = True

    def __init__(
        self,
        channels: int,
        *,
        ratio: int = 2,  # C / d
        temperature: float = 0.05,  # Cityscapes and COCO; 0.1 for ADE20K, VOC, PASCAL-Context
        whiten: Whiten = "channel",
    ) -> None:
        super().__init__()
        if channels % ratio:
            raise ValueError(f"ratio={ratio} does not divide {channels} channels; choose a divisor")
        inner = channels // ratio
        self.whiten: Whiten = whiten
        self.scale = inner**-0.5 / temperature
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, channels, bias=False)
        self.mask = nn.Linear(channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        for layer in (self.query, self.key, self.value, self.mask):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        q, k = self.pair(x)
        u, v = self.unary(x), self.value(tokens(x))
        with torch.autocast(x.device.type, enabled=False):  # 1 / tau magnifies rounding
            pair = self.fused(single(q), single(k), single(v))
        y = self.gamma * pair + u[:, None].to(v.dtype) @ v  # [B, N, C]
        return x + y.mT.unflatten(2, x.shape[2:]).to(x.dtype)

    def fused(
        self, q: Float[Tensor, "b n d"], k: Float[Tensor, "b n d"], v: Float[Tensor, "b n c"]
    ) -> Float[Tensor, "b n c"]:
        """P v, without P in memory: values in slices as wide as q, as fused kernels want them."""
        v = v.unflatten(-1, (-1, q.shape[-1])).transpose(1, 2)  # [B, S, N, D]
        q, k = (t[:, None].expand(-1, v.shape[1], -1, -1) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return y.transpose(1, 2).flatten(2)

    def attention(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b n n"]:
        """The pairwise rows P, each of sum 1, without the gate."""
        return self.rows(*self.pair(x))

    def look(
        self, x: Float[Tensor, "b c *space"], at: Int[Tensor, "q"]
    ) -> dict[str, Float[Tensor, "b 1 q *space"]]:
        q, k = self.pair(x)
        pair = self.rows(q[:, at], k)  # [B, Q, N]
        parts = {"pairwise": pair, "unary": self.unary(x)[:, None].expand_as(pair)}
        return {name: y.unflatten(2, x.shape[2:])[:, None] for name, y in parts.items()}

    def rows(self, q: Float[Tensor, "b q d"], k: Float[Tensor, "b n d"]) -> Float[Tensor, "b q n"]:
        with torch.autocast(q.device.type, enabled=False):
            return (single(q) @ single(k).mT * self.scale).softmax(-1)

    def unary(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b n"]:
        """What every position attends to, U, of sum 1."""
        return single(self.mask(tokens(x))[..., 0]).softmax(-1)

    def pair(
        self, x: Float[Tensor, "b c *space"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Whitened queries and keys."""
        y = tokens(x)
        return whitened(self.query(y), self.whiten), whitened(self.key(y), self.whiten)


def whitened(y: Float[Tensor, "b n d"], whiten: Whiten) -> Float[Tensor, "b n d"]:
    match whiten:
        case "channel":
            return y - y.mean(1, keepdim=True)
        case "scalar":
            return y - y.mean((1, 2), keepdim=True)
        case "none":
            return y
