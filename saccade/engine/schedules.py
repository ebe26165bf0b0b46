"""Learning rate and weight decay as functions of the step."""

from __future__ import annotations

import math

from ..recipe import Optim, Schedule, scaled_lr


def warmup_steps(schedule: Schedule, epoch_steps: int) -> int:
    return round(schedule.warmup_epochs * epoch_steps) + schedule.warmup_steps


def shape_at(schedule: Schedule, step: int, steps: int, epoch_steps: int) -> float:
    """Share of the peak learning rate after the warm-up, in [0, 1], before `final_lr`."""
    if schedule.per == "epoch":
        step = step // epoch_steps * epoch_steps
    warmup = warmup_steps(schedule, epoch_steps)
    match schedule.shape:
        case "constant":
            return 1.0
        case "steps":
            return 0.1 ** sum(step >= share * steps for share in schedule.drops)
        case "cosine":
            return (1 + math.cos(math.pi * max(step - warmup, 0) / max(steps - warmup, 1))) / 2
        case "poly":
            return max(1 - max(step - warmup, 0) / max(steps - warmup, 1), 0.0) ** schedule.power


def lr_at(optim: Optim, batch_size: int, step: int, steps: int, epoch_steps: int) -> float:
    """Learning rate of a step: linear from 0 through the warm-up, then the shape."""
    schedule, peak = optim.schedule, scaled_lr(optim.lr, optim.lr_rule, batch_size)
    warmup = warmup_steps(schedule, epoch_steps)
    if step < warmup:
        return peak * step / warmup
    share = shape_at(schedule, step, steps, epoch_steps)
    return schedule.final_lr + (peak - schedule.final_lr) * share


def weight_decay_at(optim: Optim, progress: float) -> float:
    """Weight decay of a step: a number, or half a cosine between two."""
    if not isinstance(optim.weight_decay, tuple):
        return optim.weight_decay
    start, end = optim.weight_decay
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
