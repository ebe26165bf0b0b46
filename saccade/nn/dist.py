"""What ranks exchange. On one rank every function is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def summed(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Sum over ranks; the gradient is summed over ranks too."""
    return all_reduce(x.contiguous()) if world() > 1 else x


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


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """Mean over ranks, without gradient."""
    if world() == 1:
        return x.detach()
    y = x.detach().clone()
    dist.all_reduce(y)
    return y / world()


@torch.no_grad()
def from_first(x: Tensor) -> Tensor:
    """Rank 0's tensor on every rank."""
    if world() > 1:
        dist.broadcast(x, 0)
    return x


@torch.no_grad()
def lowest(x: Tensor) -> Tensor:
    """Smallest value over ranks."""
    if world() == 1:
        return x
    y = x.clone()
    dist.all_reduce(y, dist.ReduceOp.MIN)
    return y
