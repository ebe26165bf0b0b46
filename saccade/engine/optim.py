"""Optimizers from a recipe: SGD and AdamW of torch, and LARS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Task
from ..recipe import Optim
from .sharding import whole


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888).

    g' = g + wd w,   t = trust |w| / |g'| (1 where either norm is 0, and where `adapt` is off),
    v <- momentum v + t g',   w <- w - lr v.   With `lr_in_buffer` (SimCLR's TensorFlow form)
    v <- momentum v + lr t g',   w <- w - v, which differs whenever the rate changes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        lr_in_buffer: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "lr_in_buffer": lr_in_buffer,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        g = p.grad.add(p, alpha=group["weight_decay"])  # type: ignore[union-attr]
        if group["adapt"]:
            w_norm, g_norm = p.norm(), g.norm()
            ratio = group["trust"] * w_norm / g_norm
            g = g * torch.where((w_norm > 0) & (g_norm > 0), ratio, torch.ones_like(ratio))
        inside = group["lr"] if group["lr_in_buffer"] else 1.0
        v = state["momentum_buffer"].mul_(group["momentum"]).add_(g, alpha=inside)
        p.sub_(v, alpha=1.0 if group["lr_in_buffer"] else group["lr"])


def build(task: Task, cfg: Optim) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters of a task, one group per decay and rate.

    Groups carry `lr_scale`, `decay_scale` and `constant_lr`; the loop sets `lr` and `weight_decay`
    from them.
    """
    groups: list[dict[str, Any]] = []
    for group in task.groups():
        for flat in (False, True):  # flat: biases and norm weights
            params = [(n, p) for n, p in group.params if (p.ndim <= 1) == flat]
            exempt = flat and not cfg.decay_1d
            if params:
                groups.append(
                    {
                        "params": params,
                        "lr_scale": group.lr_scale,
                        "decay_scale": 0.0 if exempt else group.decay_scale,
                        "adapt": not exempt,
                        "constant_lr": group.constant_lr,
                    }
                )
    _complete(task, groups)
    match cfg.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum)
        case "adamw":
            return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas)
        case "lars":
            return Lars(
                groups,
                lr=cfg.lr,
                momentum=cfg.momentum,
                trust=cfg.trust,
                lr_in_buffer=cfg.lr_in_buffer,
            )


def _complete(task: Task, groups: list[dict[str, Any]]) -> None:
    grouped = [id(p) for g in groups for _, p in g["params"]]
    wanted = [id(p) for p in task.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(wanted), "groups() must name each trainable parameter once"


def set_rates(
    optimizer: torch.optim.Optimizer, lr: float, peak: float, weight_decay: float
) -> None:
    """Rates of a step; groups that keep a constant one get the peak of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = (peak if group["constant_lr"] else lr) * group["lr_scale"]
        group["weight_decay"] = weight_decay * group["decay_scale"]


@torch.no_grad()
def clip(params: Iterable[nn.Parameter], most: float, by: str) -> Tensor:
    """Scale gradients down to a norm, of all together or of each tensor; the norm before it."""
    params = [p for p in params if p.grad is not None]
    if by == "all":
        return whole(nn.utils.clip_grad_norm_(params, most or float("inf")))
    grads = [p.grad for p in params if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(grads))  # pyright: ignore[reportPrivateImportUsage]
    if most:
        scales = (most / (norms + 1e-6)).clamp(max=1.0).unbind()
        torch._foreach_mul_(grads, list(scales))  # pyright: ignore[reportPrivateImportUsage]
    return whole(norms.norm())
