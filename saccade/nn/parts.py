"""Small stateful parts: heads, teachers, queues."""

from __future__ import annotations

import copy
import itertools
from typing import Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.drop import DropPath
from torch import Tensor, nn

from .dist import gather_frozen


def mlp(*widths: int, norm: Literal["none", "hidden", "all"] = "hidden") -> nn.Sequential:
    """Linear layers with ReLU between them: mlp(in, hidden, out).

    `hidden` puts a batch norm before each ReLU; `all` adds one after the last layer that scales
    and does not shift. A linear layer has a bias unless a norm follows it.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        normed = norm == "all" or (norm == "hidden" and not last)
        layers.append(nn.Linear(a, b, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(b))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    if norm == "all":
        layers[-1].register_parameter("bias", None)
    return nn.Sequential(*layers)


def biasless_mlp(*widths: int, last_norm: bool) -> nn.Sequential:
    """Linear layers without biases, with batch norm and ReLU between them.

    `last_norm` ends in a batch norm without weights: every channel has mean 0 and variance 1.
    """
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    del layers[-2:]
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


def hidden_layers(dim: int, layers: int) -> nn.Sequential:
    """Layers without bias, of one width, each with batch norm and ReLU behind it; perhaps none."""
    unit = (
        (nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True))
        for _ in range(layers)
    )
    return nn.Sequential(*(m for three in unit for m in three))


def pixel_mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Two layers for every cell of a map alone, with batch norm and ReLU between them."""
    return nn.Sequential(
        nn.Conv2d(dim, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, 1),
    )


class PrototypeHead(nn.Module):
    """DINO's: three layers, then cosines of the bottleneck to K prototypes, each times its gain."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        *,
        train_gain: bool,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (dim, hidden):
            layers += [nn.Linear(width, hidden)]
            layers += [nn.BatchNorm1d(hidden)] if batch_norm else []
            layers += [nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(nn.Linear(bottleneck, prototypes).weight.detach())  # [K, D]
        self.gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=train_gain)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        z = F.normalize(self.mlp(x), dim=-1)
        return F.linear(z, self.gain * F.normalize(self.prototypes, dim=-1))


def without_drop_path(module: nn.Module) -> nn.Module:
    """The same module with stochastic depth switched off for good, also in training mode."""
    for m in module.modules():
        if isinstance(m, DropPath):
            m.drop_prob = 0.0
    return module


M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def recenter(center: Float[Tensor, "k"], fresh: list[Float[Tensor, "k"]], momentum: float) -> None:
    """Move a running mean towards the mean of what a step has seen, and forget that."""
    if fresh:
        center.lerp_(torch.stack(fresh).mean(0), 1 - momentum)
        fresh.clear()


class Ema(nn.Module, Generic[M]):
    """A frozen copy of a module that follows it: teacher <- m teacher + (1 - m) source.

    Parameters only: buffers, such as batch statistics, are the copy's own, from its own passes.
    """

    module: M

    def __init__(self, source: M) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def update(self, source: M, momentum: float) -> None:
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(source.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return self.module(x)


class Queue(nn.Module):
    """The last `size` unit vectors pushed, the oldest overwritten first. Starts random."""

    rows: Tensor  # [size, dim]
    head: Tensor  # [] where the next push starts

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, x: Float[Tensor, "b d"]) -> None:
        """Store the rows of all ranks, so that the queues of all ranks agree."""
        size = len(self.rows)
        if size % len(x):
            near = max(size // len(x), 1) * len(x)
            raise ValueError(
                f"setting method.queue_size: {size} is not a multiple of the {len(x)} keys that"
                f" each step adds; choose {near}, or another batch_size"
            )
        at = (self.head + torch.arange(len(x), device=x.device)) % size
        self.rows.index_copy_(0, at, x.to(self.rows.dtype))
        self.head.copy_((self.head + len(x)) % size)


def last_place(values: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Where each value stands for the last time: writes by it do not depend on their order."""
    places = torch.arange(len(values), device=values.device)
    return torch.where(values == values[:, None], places, -1).amax(1)


class Bank(nn.Module):
    """The last feature of every image of the dataset, one row each. Starts random."""

    rows: Tensor  # [images, dim]

    def __init__(self, images: int, dim: int) -> None:
        super().__init__()
        if images < 1:
            raise ValueError(f"setting method.images: {images}; give the number of pictures")
        spread = (3 / dim) ** 0.5  # rows of length about 1
        self.register_buffer("rows", torch.empty(images, dim).uniform_(-spread, spread))

    @torch.no_grad()
    def update(self, index: Int[Tensor, "b"], x: Float[Tensor, "b d"], momentum: float) -> None:
        """Move rows to unit(momentum row + (1 - momentum) x), by the rows of all ranks.

        Of an image that is twice in the batch, the last one counts.
        """
        index, x = gather_frozen(index), gather_frozen(x).to(self.rows.dtype)
        moved = momentum * self.rows[index] + (1 - momentum) * x[last_place(index)]
        self.rows.index_copy_(0, index, F.normalize(moved, dim=-1))
