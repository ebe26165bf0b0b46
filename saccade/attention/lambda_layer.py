"""Lambda layer: the context becomes a small linear map, which is applied to the query.

Bello 2021, arXiv:2102.08602. With queries q [n, h, k], keys K [m, k, u], values V [m, v, u],
    y_n = concat_h( lambda_n^T q_n^h ),    lambda_n = lambda_c + lambda_p_n,    [k, v]
    lambda_c = sum_m,u softmax_m(K)_mu V_mu^T,    lambda_p_n = sum_m,u E_nmu V_mu^T.
All heads use the same lambdas, u is the intra-depth, and E_nm depends on the offset m - n alone:
`LocalLambda` is the lambda convolution, with offsets up to scope // 2; `GlobalLambda` reaches
the whole map and is bound to its size. Keys are normalized over positions, each channel for
itself; queries and values go through batch norm, keys do not. Sums over positions are in single
precision: keys of a large map are smaller than half precision resolves. Position tables start at
N(0, 1): a batch norm must follow the layer.
Left out: lambdas of masked or autoregressive contexts, so the padding of pictures that share a
batch takes its part of their keys; and one table for several layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Mechanism
from .non_local import single


class LocalLambda(nn.Module):
    """Position lambdas by convolution: of values [B, u v, H, W]."""

    def __init__(self, scope: int = 23, *, depth: int = 16, intra: int = 1) -> None:
        super().__init__()
        if scope % 2 == 0:
            raise ValueError(f"scope={scope} has no center; choose an odd one")
        self.scope, self.depth, self.intra = scope, depth, intra
        self.table = nn.Parameter(torch.randn(depth, intra, scope, scope))  # [k, u, r, r]

    def forward(self, v: Float[Tensor, "b u v h w"]) -> Float[Tensor, "b v k h w"]:
        # What lies further than the map is large meets only padding
        reach = [min(self.scope // 2, side - 1) for side in v.shape[3:]]
        rows, columns = (slice(self.scope // 2 - r, self.scope // 2 + r + 1) for r in reach)
        flat = v.transpose(1, 2).flatten(0, 1)  # [B v, u, H, W]
        y = F.conv2d(flat, self.table[..., rows, columns], padding=tuple(reach))
        return y.unflatten(0, (v.shape[0], v.shape[2]))

    def embeddings(self, size: torch.Size, at: Int[Tensor, "q"]) -> Float[Tensor, "q m k u"]:
        """E of the positions `at` and all others, zero beyond the scope."""
        width, half = size[1], self.scope // 2
        y = torch.arange(size[0], device=at.device) - at[:, None] // width + half  # [Q, H]
        x = torch.arange(width, device=at.device) - at[:, None] % width + half  # [Q, W]
        on_y, on_x = ((t >= 0) & (t < self.scope) for t in (y, x))
        y, x = (t.clamp(0, self.scope - 1) for t in (y, x))
        e = self.table[:, :, y[:, :, None], x[:, None]]  # [k, u, Q, H, W]
        e = e * (on_y[:, :, None] & on_x[:, None])
        return e.permute(2, 3, 4, 0, 1).flatten(1, 2)


class GlobalLambda(nn.Module):
    """Position lambdas over a whole map of one size."""

    places: Tensor  # [n, n] row of the table for each query and each position

    def __init__(self, size: tuple[int, int], *, depth: int = 16, intra: int = 1) -> None:
        super().__init__()
        self.size, self.depth, self.intra = size, depth, intra
        height, width = size
        offsets = (2 * height - 1) * (2 * width - 1)
        self.table = nn.Parameter(torch.randn(offsets, depth, intra))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = y.flatten(), x.flatten()
        places = (y - y[:, None] + height - 1) * (2 * width - 1) + x - x[:, None] + width - 1
        self.register_buffer("places", places, persistent=False)

    def forward(self, v: Float[Tensor, "b u v h w"]) -> Float[Tensor, "b v k h w"]:
        if tuple(v.shape[3:]) != self.size:
            raise ValueError(
                f"GlobalLambda: a map of {v.shape[3]} x {v.shape[4]}, built for "
                f"{self.size[0]} x {self.size[1]}; use LocalLambda for any size"
            )
        e = self.table[self.places]  # [n, m, k, u]
        return torch.einsum("nmku,buvm->bvkn", e, v.flatten(3)).unflatten(3, self.size)

    def embeddings(self, size: torch.Size, at: Int[Tensor, "q"]) -> Float[Tensor, "q m k u"]:
        """E of the positions `at` and all others."""
        return self.table[self.places[at]]


class LambdaLayer(Mechanism):
    adds = False

    def __init__(
        self, channels: int, out: int, positions: LocalLambda | GlobalLambda, *, heads: int = 4
    ) -> None:
        super().__init__()
        if out % heads:
            raise ValueError(f"heads={heads} does not divide {out} channels; choose a divisor")
        k, u, v = positions.depth, positions.intra, out // heads
        self.heads, self.positions = heads, positions
        self.parts = (heads * k, k * u, v * u)
        self.qkv = nn.Conv2d(channels, sum(self.parts), 1, bias=False)
        self.norm_q = nn.BatchNorm2d(heads * k)
        self.norm_v = nn.BatchNorm2d(v * u)
        nn.init.normal_(self.qkv.weight, std=channels**-0.5)
        with torch.no_grad():
            self.qkv.weight[: heads * k] *= k**-0.5

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        q, k, v = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            content = torch.einsum("bukm,buvm->bvk", k, v.flatten(3).to(k.dtype))
        position = self.positions(v).flatten(3)  # [B, v, k, N]
        y = torch.einsum("bhkn,bvkn->bhvn", q, content[..., None].to(position.dtype) + position)
        return y.flatten(1, 2).unflatten(2, x.shape[2:])

    def look(
        self, x: Float[Tensor, "b c h w"], at: Int[Tensor, "q"]
    ) -> dict[str, Float[Tensor, "b hu q h w"]]:
        """q . K and q . E, which multiply the values, for each head and each of the intra-depth.

        They may be below 0, and have no sum of 1.
        """
        q, k, _ = self.project(x)
        q = q[..., at]  # [B, h, k, Q]
        e = self.positions.embeddings(x.shape[2:], at)  # [Q, M, k, u]
        parts = {
            "content": torch.einsum("bhkq,bukm->bhuqm", q.to(k.dtype), k),
            "position": torch.einsum("bhkq,qmku->bhuqm", q, e),
        }
        return {name: y.flatten(1, 2).unflatten(3, x.shape[2:]) for name, y in parts.items()}

    def project(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b i k n"], Float[Tensor, "b u k n"], Float[Tensor, "b u v h w"]]:
        """Queries of each head, keys normalized over positions, values."""
        u = self.positions.intra
        q, k, v = self.qkv(x).split(self.parts, 1)
        q = self.norm_q(q).flatten(2).unflatten(1, (self.heads, -1))
        k = single(k.flatten(2).unflatten(1, (u, -1))).softmax(-1)
        return q, k, self.norm_v(v).unflatten(1, (u, -1))
