"""Activation checkpointing: less memory for a second forward pass.

A block of a network keeps only what goes into it; what happens inside is computed again, with the
same random numbers, when the backward pass comes by. Chen et al. 2016, arXiv:1604.06174.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

STACKS = "blocks"  # what timm's transformers and ours call their sequence of blocks


def recompute(task: nn.Module) -> None:
    """Let all blocks that train compute their insides twice. Gradients stay what they were.

    ValueError where there are none, or where batch norm in them would count each batch twice.
    """
    stacks = [m for name, m in task.named_modules() if name.rpartition(".")[2] == STACKS]
    each = [block for stack in stacks for block in stack.children()]
    blocks = [b for b in each if any(p.requires_grad for p in b.parameters())]
    inside = (m for b in blocks for m in b.modules())
    if not blocks or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in inside):
        raise ValueError(
            f"setting engine.activation_checkpointing: {type(task).__name__} trains no blocks "
            "without batch norm here; set it to false, or choose a ViT, a Swin or a ConvNeXt"
        )
    for block in blocks:
        block.__class__ = twice(type(block))


@cache
def twice(cls: type[nn.Module]) -> type[nn.Module]:
    """The same class, whose instances keep their input alone. A copy of one is another such one."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return cls.forward(self, *args, **kwargs)
        return checkpoint(cls.forward, self, *args, use_reentrant=False, **kwargs)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
