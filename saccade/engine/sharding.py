"""Fully sharded training: every rank keeps a share of weights, gradients and moments.

Zhao et al. 2023, arXiv:2304.11277, as PyTorch's `fully_shard` does it: parameters lie cut along
their first axis, one piece a rank; a block is gathered when it computes and let go after it, and
gradients come back summed in the same pieces. What a step computes stays what it was. PyTorch's
modules for it are imported where they are used: they take half as long as torch itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core import Task
from .recompute import STACKS

T = TypeVar("T", bound=Task)


def shard(task: Task) -> None:
    """Cut all parameters over the ranks, in place; an optimizer is to be built after it.

    Blocks of transformers come and go one by one. All else is there while the task computes,
    and so is the last block of a stack, which methods look into. Buffers stay whole on all ranks.
    """
    from torch.distributed.fsdp import fully_shard

    task.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    stacks = [m for name, m in task.named_modules() if name.rpartition(".")[2] == STACKS]
    for stack in stacks:
        for block in list(stack.children())[:-1]:
            fully_shard(block)
    fully_shard(task)


def in_pieces(x: Tensor) -> bool:
    return hasattr(x, "full_tensor")  # a DTensor


def whole(x: Tensor) -> Tensor:
    """A tensor with the pieces of all ranks, each of which must ask; any other as it is."""
    return x.full_tensor() if in_pieces(x) else x  # type: ignore[attr-defined]


def cut_like(x: Tensor, like: Tensor) -> Tensor:
    """This rank's piece of a whole tensor where `like` is in pieces; else the tensor."""
    if not in_pieces(like):
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)


def whole_again(fresh: T, sharded: T) -> T:
    """The fresh task with the whole state of the sharded one; every rank must ask."""
    fresh.load_state_dict({k: whole(x).cpu() for k, x in sharded.state_dict().items()})
    return fresh


@contextmanager
def gathered(task: nn.Module) -> Iterator[None]:
    """A sharded task whose parts can be called by themselves, on all ranks alike."""
    parts: list[Any] = [m for m in task.modules() if hasattr(m, "unshard")]
    for part in parts:
        part.unshard()
    yield
    for part in parts:
        part.reshard()
