"""What ranks exchange. On one rank every function is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


class _Sum(torch.autograd.Function):
    """Sum over ranks forward, and of gradients backward. torch's own is deprecated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.forward(ctx, grads[0])


def summed(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Sum over ranks; the gradient is summed over ranks too."""
    return _Sum.apply(x) if world() > 1 else x  # type: ignore[return-value]


def gather(x: Float[Tensor, "b ..."]) -> Float[Tensor, "n ..."]:
    """Rows of all ranks in rank order; gradient flows back to every rank's own rows."""
    if world() == 1:
        return x
    spread = x.new_zeros(world(), *x.shape)
    spread[rank()] = x
    return summed(spread).flatten(0, 1)


@torch.no_grad()
def gather_frozen(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient: for queues, centers, codes."""
    if world() == 1:
        return x.detach()
    rows = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(rows, x.detach().contiguous())
    return torch.cat(rows)


def mine(rows: int) -> slice:
    """This rank's rows of a gathered batch."""
    return slice(rank() * rows, (rank() + 1) * rows)


def shuffle(x: Float[Tensor, "b ..."], order: Int[Tensor, "n"]) -> Float[Tensor, "b ..."]:
    """This rank's share of the batch of all ranks, in the new order."""
    return gather_frozen(x)[order[mine(len(x))]]


def unshuffle(x: Float[Tensor, "b ..."], order: Int[Tensor, "n"]) -> Float[Tensor, "n ..."]:
    """The rows of all ranks in the order before `shuffle`."""
    return gather_frozen(x)[order.argsort()]


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """Mean over ranks, without gradient."""
    if world() == 1:
        return x.detach()
    y = x.detach().clone()
    dist.all_reduce(y)
    return y / world()


@torch.no_grad()
def highest(x: Tensor) -> Tensor:
    """Largest value over ranks."""
    if world() == 1:
        return x
    y = x.clone()
    dist.all_reduce(y, dist.ReduceOp.MAX)
    return y


@torch.no_grad()
def lowest(x: Tensor) -> Tensor:
    """Smallest value over ranks."""
    if world() == 1:
        return x
    y = x.clone()
    dist.all_reduce(y, dist.ReduceOp.MIN)
    return y
