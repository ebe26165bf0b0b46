"""Local relation layer: the weights of a convolution's window come from what it looks at.

Hu et al. 2019, arXiv:1904.11491. In group g of `group` neighboring channels, for window offsets o,
    y_c(p) = sum_o w_g(p, o) x_c(p + o),
    w_g(p, .) = softmax_o( phi( q_g(p), k_g(p + o) ) + F_g(o) ).
q and k are one number a group and position, x is not projected, and phi is q k, -(q - k)^2 or
-|q - k|. F is a small network of the offset, so that large windows cost no parameters; offsets
run over [-1, 1] and 64 units are hidden (the paper's numbers are not known). Positions outside the
picture get no weight (the official operator gives them exp(-100)). The official operator's saliency
channels, other similarities and tables instead of F are later additions and left out. A network
puts a 1x1 convolution behind the layer.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Mechanism
from .non_local import single

Similarity = Literal["product", "squared", "absolute"]
HIDDEN = 64  # units of the geometry prior


class LocalRelation(Mechanism):
    adds = False
    offsets: Tensor  # [kernel^2, 2] rows and columns, in [-1, 1]

    def __init__(
        self,
        channels: int,
        *,
        kernel: int = 7,
        group: int = 8,  # channels that share their weights
        similarity: Similarity = "product",
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if channels % group:
            raise ValueError(f"group={group} does not divide {channels} channels; choose a divisor")
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} has no center; choose an odd one")
        self.kernel, self.groups = kernel, channels // group
        self.similarity: Similarity = similarity
        self.stride, self.dilation = stride, dilation
        self.query = nn.Conv2d(channels, self.groups, 1, bias=False)
        self.key = nn.Conv2d(channels, self.groups, 1, bias=False)
        self.geometry = nn.Sequential(
            nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, self.groups, bias=False)
        )
        line = torch.linspace(-1, 1, kernel) if kernel > 1 else torch.zeros(1)
        self.register_buffer("offsets", torch.cartesian_prod(line, line), persistent=False)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        w = self.attention(x)
        with torch.autocast(x.device.type, enabled=False):
            return aggregate(x.to(w.dtype), w, self.stride, self.dilation).to(x.dtype)

    def attention(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b g o h w"]:
        """Weights of the window's offsets in raster order, of sum 1."""
        q = self.query(x[..., :: self.stride, :: self.stride])  # [B, G, h, w]
        k = self.windows(self.key(x)).unflatten(1, (self.groups, -1))  # [B, G, O, N]
        q = q.flatten(2)[:, :, None]  # [B, G, 1, N]
        match self.similarity:
            case "product":
                like = q * k
            case "squared":
                like = -(q - k).square()
            case "absolute":
                like = -(q - k).abs()
        inside = self.windows(like.new_ones(1, 1, *x.shape[2:]))[:, None]  # [1, 1, O, N]
        logits = like + self.geometry(self.offsets).T[:, :, None]
        logits = logits.masked_fill(inside == 0, -torch.inf)
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        return single(logits).softmax(2).unflatten(3, (height, width))

    def look(
        self, x: Float[Tensor, "b c H W"], at: Int[Tensor, "q"]
    ) -> dict[str, Float[Tensor, "b g q H W"]]:
        w = self.attention(x).flatten(3)[..., at].mT  # [B, G, Q, O]
        size = x.shape[2:]
        cells = 1 + torch.arange(size.numel(), device=x.device, dtype=w.dtype)
        places = self.windows(cells.view(1, 1, *size))[0, :, at].mT.long()  # [Q, O], 0 outside
        empty = w.new_zeros(*w.shape[:3], 1 + size.numel())
        y = empty.scatter_add(3, places.expand_as(w), w)[..., 1:]
        return {"attention": y.unflatten(3, size)}

    def windows(self, x: Float[Tensor, "b g H W"]) -> Float[Tensor, "b go n"]:
        pad = self.kernel // 2 * self.dilation
        return F.unfold(x, self.kernel, self.dilation, pad, self.stride)


def aggregate(
    x: Float[Tensor, "b c H W"], w: Float[Tensor, "b g o h w"], stride: int, dilation: int
) -> Float[Tensor, "b c h w"]:
    """Sums over windows of x with the weights of each group, zeros around x."""
    return Aggregate.apply(x, w, stride, dilation)


class Aggregate(torch.autograd.Function):
    """One multiply-add of the whole map for each offset: nothing of the windows' size is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.stride, ctx.dilation = stride, dilation
        y = x.new_zeros(w.shape[0], w.shape[1], x.shape[1] // w.shape[1], *w.shape[3:])
        padded = _padded(x, w, dilation)
        for o, at in enumerate(_places(w, stride, dilation)):
            y.addcmul_(w[:, :, o, None], padded[at])
        return y.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, w = ctx.saved_tensors
        padded = _padded(x, w, ctx.dilation)
        grad = grads[0].contiguous().unflatten(1, (w.shape[1], -1))  # [B, G, M, h, w]
        grad_x, grad_w = torch.zeros_like(padded), torch.empty_like(w)
        for o, at in enumerate(_places(w, ctx.stride, ctx.dilation)):
            grad_x[at].addcmul_(w[:, :, o, None], grad)
            grad_w[:, :, o] = (grad * padded[at]).sum(2)
        pad = _pad(w, ctx.dilation)
        height, width = x.shape[2:]
        inner = grad_x[..., pad : pad + height, pad : pad + width]
        return inner.flatten(1, 2), grad_w, None, None


def _pad(w: Tensor, dilation: int) -> int:
    return (round(w.shape[2] ** 0.5) // 2) * dilation


def _padded(x: Tensor, w: Tensor, dilation: int) -> Tensor:
    """[B, G, M, H + 2 pad, W + 2 pad]"""
    return F.pad(x.contiguous(), [_pad(w, dilation)] * 4).unflatten(1, (w.shape[1], -1))


def _places(w: Tensor, stride: int, dilation: int) -> list[Any]:
    """Where in the padded map each offset finds the whole output's inputs."""
    kernel, (height, width) = round(w.shape[2] ** 0.5), w.shape[3:]
    ends = (stride * (height - 1) + 1, stride * (width - 1) + 1)
    starts = [dilation * i for i in range(kernel)]
    return [
        (..., slice(i, i + ends[0], stride), slice(j, j + ends[1], stride))
        for i in starts
        for j in starts
    ]
