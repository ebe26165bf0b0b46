"""Global context block: the part of a non-local block that is the same for every position.

Cao et al. 2019, arXiv:1904.11492 (GCNet).
    z_i = x_i + W_2 relu( LN( W_1 c ) ),    c = sum_j softmax_j( W_k x_j ) x_j.
W_2 starts at zero, so that the block starts as the identity (timm's leaves a random bias in W_2,
and multiplies by a sigmoid unless told to add).
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Mechanism
from .non_local import single, tokens


class GlobalContext(Mechanism):
    adds = True

    def __init__(self, channels: int, *, ratio: int = 16) -> None:
        super().__init__()
        inner = max(channels // ratio, 1)
        self.mask = nn.Linear(channels, 1)
        self.fc1 = nn.Linear(channels, inner)
        self.norm = nn.LayerNorm(inner)
        self.fc2 = nn.Linear(inner, channels)
        nn.init.kaiming_normal_(self.mask.weight)
        nn.init.zeros_(self.mask.bias)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        context = (self.unary(x)[:, None].to(x.dtype) @ tokens(x))[:, 0]  # [B, C]
        y = self.fc2(self.norm(self.fc1(context)).relu())
        return x + y[(...,) + (None,) * (x.ndim - 2)]

    def look(
        self, x: Float[Tensor, "b c *space"], at: Int[Tensor, "q"]
    ) -> dict[str, Float[Tensor, "b 1 q *space"]]:
        u = self.unary(x).unflatten(1, x.shape[2:])[:, None, None]  # [B, 1, 1, ...]
        return {"unary": u.expand(-1, -1, len(at), *x.shape[2:])}

    def unary(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b n"]:
        """What every position attends to, of sum 1."""
        return single(self.mask(tokens(x))[..., 0]).softmax(-1)
