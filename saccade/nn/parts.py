"""Small stateful parts: heads, teachers, queues."""

from __future__ import annotations

import copy
import itertools
from typing import Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn


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


def without_drop_path(module: nn.Module) -> nn.Module:
    """The same module with stochastic depth switched off for good, also in training mode."""
    for m in module.modules():
        if isinstance(m, DropPath):
            m.drop_prob = 0.0
    return module


M = TypeVar("M", bound=nn.Module)


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
