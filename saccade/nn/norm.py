"""Batch normalization whose statistics span all ranks, or a share of the batch, or stay fixed.

All keep the parameters, buffers and state-dict names of the layer they replace. timm's fused
norm and activation keeps its activation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .dist import gather, world

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


class Adopted(_BatchNorm, ABC):
    """A batch norm that takes over another one's state and replaces its training statistics."""

    drop: Any  # timm's, or nothing
    act: Any

    def __init__(self, source: _BatchNorm) -> None:
        c, eps, momentum = source.num_features, source.eps, source.momentum
        super().__init__(c, eps, momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = source.affine, source.track_running_stats
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        self.training = source.training
        fused = isinstance(source, BatchNormAct2d)
        self.drop = source.drop if fused else nn.Identity()
        self.act = source.act if fused else nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes may follow the channels."""

    def forward(self, input: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        y = self.normalize(input) if self.training else super().forward(input)
        return self.act(self.drop(y))

    @abstractmethod
    def normalize(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Normalize by the statistics of training, and update the running ones."""

    def step_size(self) -> float:
        """Share of the new statistics in the running ones, counting this batch."""
        if self.num_batches_tracked is None:  # nothing is tracked
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum


class SyncBatchNorm(Adopted):
    """Statistics over the batches of all ranks, with gradient, on any device.

    torch's own layer refuses CPU tensors. On one rank this is exactly `F.batch_norm`.
    """

    def normalize(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        if world() == 1:
            return _BatchNorm.forward(self, x)
        c = x.shape[1]
        var, mean = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)  # [C]
        count = mean.new_full((1,), x.numel() // c)
        stats = gather(torch.cat([mean, var, count])[None])  # [R, 2C + 1]
        means, variances, counts = stats.split([c, c, 1], 1)
        total = counts.detach().sum()
        share = counts.detach() / total  # [R, 1]
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean).square())).sum(0)
        self.track(mean.detach(), var.detach() * total / (total - 1))

        scale = (var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = (1, c) + (1,) * (x.ndim - 2)
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)

    def track(self, mean: Float[Tensor, "c"], unbiased: Float[Tensor, "c"]) -> None:
        if self.running_mean is not None and self.running_var is not None:
            share = self.step_size()
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(unbiased, share)


class SplitBatchNorm(Adopted):
    """Statistics per 1/splits of the batch, as if every share stood on its own device.

    Sample i belongs to share i modulo splits. The running statistics are the mean over shares.
    """

    def __init__(self, source: _BatchNorm, splits: int) -> None:
        super().__init__(source)
        self.splits = splits

    def normalize(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        b, c, *space = x.shape
        n = self.splits
        if b % n:
            raise ValueError(f"setting splits: {n} does not divide the {b} pictures of a device")
        wide = x.reshape(b // n, n * c, *space)
        mean, var, weight, bias = (
            None if t is None else t.repeat(n)
            for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        y = F.batch_norm(wide, mean, var, weight, bias, True, self.step_size(), self.eps)
        for mine, new in ((self.running_mean, mean), (self.running_var, var)):
            if mine is not None and new is not None:
                mine.copy_(new.view(n, c).mean(0))
        return y.reshape(x.shape)


class FrozenBatchNorm(Adopted):
    """The running statistics in training too, and weights that do not train."""

    def __init__(self, source: _BatchNorm) -> None:
        super().__init__(source)
        self.requires_grad_(False)

    def normalize(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


def synchronize(module: nn.Module) -> nn.Module:
    """Give every plain batch norm inside statistics over all ranks, in place of the original.

    Layers that split the batch stay as they are. Parameters remain the same objects.
    """
    return _replace(module, SyncBatchNorm)


def freeze(module: nn.Module) -> nn.Module:
    """Fix the statistics and weights of every plain batch norm inside, in place of the original."""
    return _replace(module, FrozenBatchNorm)


@torch.no_grad()
def remeasure(module: nn.Module, passes: Iterable[object]) -> None:
    """Running statistics as the mean over forward passes, which happen as `passes` is read.

    Precise batch norm (Wu and Johnson 2021, arXiv:2105.07576, section 3).
    """
    layers = [
        m
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and type(m) is not FrozenBatchNorm
    ]
    before = [m.momentum for m in layers]
    for m in layers:
        m.reset_running_stats()
        m.momentum = None  # torch's word for a mean over all batches
    for _ in passes:
        pass
    for m, momentum in zip(layers, before, strict=True):
        m.momentum = momentum


def split(module: nn.Module, splits: int) -> nn.Module:
    """Give every plain batch norm inside statistics over shares, in place of the original."""
    return _replace(module, lambda source: SplitBatchNorm(source, splits))


def _replace(module: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return make(module) if type(module) in PLAIN else module
    for name, child in module.named_children():
        new = _replace(child, make)
        if new is not child:
            setattr(module, name, new)
    return module
