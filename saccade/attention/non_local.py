"""Non-local block: every position adds what it finds at all positions.

Wang et al. 2018, arXiv:1711.07971. For positions i of x and j of the keys,
    z_i = x_i + norm( W_z y_i ),    y_i = 1/C_i sum_j f(x_i, x_j) g(x_j).

    pairing               f(x_i, x_j)                          C_i
    gaussian              exp(x_i . x_j)                       sum_j f
    embedded_gaussian     exp(theta(x_i) . phi(x_j))           sum_j f
    scaled_gaussian       exp(theta(x_i) . phi(x_j) / sqrt d)  sum_j f
    dot_product           theta(x_i) . phi(x_j)                number of keys
    concatenation         relu(w . [theta(x_i), phi(x_j)])     number of keys

The official code has only the scaled form and the dot product; the paper's equation has no scale.
timm's block divides by the root of the input's channels instead of d, and early code of GCNet
multiplied by sqrt d, which sharpens. The block starts as the identity: the batch norm's scale is
zero, or W_z where there is no norm. That scale must not be decayed while it is zero (Caffe2's
recipe has no decay on norms: `optim.decay_1d=False`). There is no position term: on a flat region
the block averages. Concatenation alone keeps the table of all pairs in memory. Of long clips the
official code makes groups of 4 frames, one block call each; that is left to the caller.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Mechanism

Pairing = Literal[
    "gaussian", "embedded_gaussian", "scaled_gaussian", "dot_product", "concatenation"
]
# Keys on a 2x2 max-pooled map: `input` pools x (the official order), `projected` pools phi and g
# (the paper's text). Queries are never pooled, nor is time.
Pool = Literal["none", "input", "projected"]


class NonLocal(Mechanism):
    """Takes maps with any number of axes behind the channels: [B, C, H, W], [B, C, T, H, W]."""

    adds = True

    def __init__(
        self,
        channels: int,
        *,
        pairing: Pairing = "scaled_gaussian",
        ratio: int = 2,  # C / d
        pool: Pool = "none",
        norm: bool = True,
    ) -> None:
        super().__init__()
        if channels % ratio:
            raise ValueError(f"ratio={ratio} does not divide {channels} channels; choose a divisor")
        inner = channels // ratio
        self.pairing, self.pool = pairing, pool
        self.scale = inner**-0.5 if pairing == "scaled_gaussian" else 1.0
        plain = pairing == "gaussian"
        self.theta = nn.Identity() if plain else nn.Linear(channels, inner)
        self.phi = nn.Identity() if plain else nn.Linear(channels, inner)
        self.g = nn.Linear(channels, inner)
        self.out = nn.Linear(inner, channels)
        for layer in (self.theta, self.phi, self.g, self.out):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        if pairing == "concatenation":
            self.pair = nn.Linear(2 * inner, 1, bias=False)
            nn.init.normal_(self.pair.weight, std=0.01)
        self.norm = nn.BatchNorm1d(channels) if norm else nn.Identity()
        last = self.norm if isinstance(self.norm, nn.BatchNorm1d) else self.out
        nn.init.zeros_(last.weight)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        q, k, v = self.project(x)
        match self.pairing:
            case "dot_product":
                y = q @ (k.mT @ (v / k.shape[1]))  # linear in the number of positions
            case "concatenation":
                y = self.pairs(q, k) @ (v / k.shape[1])
            case _:
                # Fused kernels want equal widths, and channels side by side
                wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
                one = [t[:, None].contiguous() for t in (q, k, wide)]
                y = F.scaled_dot_product_attention(one[0], one[1], one[2], scale=self.scale)
                y = y[:, 0, :, : v.shape[-1]]
        y = self.norm(self.out(y).mT)  # [B, C, N]
        return x + y.unflatten(2, x.shape[2:])

    def attention(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b n m"]:
        """f / C of every query (row) and key; rows of the gaussian forms sum to 1."""
        q, k, _ = self.project(x)
        return self.weights(q, k)

    def look(
        self, x: Float[Tensor, "b c *space"], at: Int[Tensor, "q"]
    ) -> dict[str, Float[Tensor, "b 1 q *keys"]]:
        q, k, _ = self.project(x)
        keys = x if self.pool == "none" else halved(x[:1, :1])
        return {"attention": self.weights(q[:, at], k).unflatten(2, keys.shape[2:])[:, None]}

    def weights(
        self, q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"]
    ) -> Float[Tensor, "b n m"]:
        with torch.autocast(q.device.type, enabled=False):  # dots of wide maps leave half's range
            q, k = single(q), single(k)
            match self.pairing:
                case "dot_product":
                    return q @ k.mT / k.shape[1]
                case "concatenation":
                    return self.pairs(q, k) / k.shape[1]
                case _:
                    return (q @ k.mT * self.scale).softmax(-1)

    def project(
        self, x: Float[Tensor, "b c *space"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"], Float[Tensor, "b m e"]]:
        """Queries, keys and values."""
        keys = tokens(halved(x) if self.pool == "input" else x)
        q, k, v = self.theta(tokens(x)), self.phi(keys), self.g(keys)
        if self.pool == "projected":
            k, v = (tokens(halved(t.mT.unflatten(2, x.shape[2:]))) for t in (k, v))
        return q, k, v

    def pairs(self, q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"]) -> Float[Tensor, "b n m"]:
        """relu(w . [q_i, k_j]), from the two halves of w."""
        a, b = self.pair.weight[0].chunk(2)
        return torch.relu((q @ a)[:, :, None] + (k @ b)[:, None])


def tokens(x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b n c"]:
    """The positions of a map in raster order."""
    return x.flatten(2).mT


def single(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """In single precision, if it was in half."""
    return x.float() if x.dtype.itemsize < 4 else x


def halved(x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *smaller"]:
    """2x2 max pooling of the last two axes; an axis of 1 stays."""
    window = (min(2, x.shape[-2]), min(2, x.shape[-1]))
    pooled = F.max_pool2d(x.flatten(0, -3), window)
    return pooled.unflatten(0, x.shape[:-2])
