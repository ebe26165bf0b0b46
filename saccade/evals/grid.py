"""DINOv2's linear evaluation: many classifiers trained at once, the best one taken.

Oquab et al. 2023, arXiv:2304.07193. SGD, momentum .9, no weight decay, 10 epochs of 1,250 steps of
batch 1024, half a cosine; 13 learning rates x B/256, on the last block's CLS token or the CLS
tokens of the last 4 blocks (or as many as there are), each with and without the mean patch token
of the last block: 52 classifiers. Networks without blocks have one input, the pooled vector, and 13
classifiers.

Deviations: the official script takes the classifier that is best on the test pictures; here a tenth
of the training pictures, not trained on, chooses. Features are cached from center crops, where the
paper's see a new crop and flip every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Backbone, PatchBackbone
from .features import Data, blocks
from .results import Score


@dataclass(frozen=True, kw_only=True)
class Grid:
    rates: tuple[float, ...] = (
        *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    )  # x B/256
    epochs: int = 10
    epoch_steps: int = 1250
    batch_size: int = 1024
    momentum: float = 0.9
    held_out: float = 0.1  # share of the training pictures that chooses


PROTOCOLS = {"linear-dinov2": Grid()}


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Top-1 of the classifier that is best on the held-out training pictures."""
    cfg = replace(PROTOCOLS[protocol], epochs=data.epochs or PROTOCOLS[protocol].epochs)
    bank, query = data.features("cls-4-mean")
    order = torch.randperm(len(bank.x), generator=torch.Generator().manual_seed(data.seed))
    held = max(1, round(cfg.held_out * len(order)))
    judge, learn = (rows.to(bank.x.device) for rows in (order[:held], order[held:]))
    parts = inputs(bank.x.shape[1], data.model)
    heads = fit(cfg, bank.x[learn], bank.y[learn], parts, data.classes, data.seed)
    with torch.no_grad():
        right = [
            (s.argmax(2) == bank.y[judge]).float().mean(1)
            for s in _scores(heads, bank.x[judge], parts)
        ]
        which = int(torch.stack(right).argmax())  # [parts, rates]
        part, rate = divmod(which, len(cfg.rates))
        name = list(parts)[part]
        answer = _scores([heads[part]], query.x, {name: parts[name]})[0][rate].argmax(1)
    settings = asdict(cfg) | {"chosen": {"input": name, "lr": cfg.rates[rate]}, "bank": len(learn)}
    yield Score("top1", (answer == query.y).cpu().numpy(), settings)


def fit(
    cfg: Grid,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    parts: dict[str, Int[Tensor, "_"]],
    classes: int,
    seed: int,
) -> list[nn.ParameterList]:
    """For each part of the features a weight and a bias of [rates, ...]."""
    draws = torch.Generator().manual_seed(seed)
    size = min(cfg.batch_size, len(x))
    heads = [_head(cfg, len(rows), classes, draws).to(x.device) for rows in parts.values()]
    optimizer = torch.optim.SGD([p for h in heads for p in h], 1.0, cfg.momentum)
    rates = torch.tensor(cfg.rates, device=x.device)[:, None, None] * size / 256
    order = torch.empty(0, dtype=torch.long)
    steps = cfg.epochs * cfg.epoch_steps
    for step in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=draws)
        at, order = order[:size].to(x.device), order[size:]
        optimizer.zero_grad()
        target = y[at].expand(len(cfg.rates), -1)
        for scores in _scores(heads, x[at], parts):  # rates x the mean loss of each classifier
            losses = F.cross_entropy(scores.mT, target, reduction="none").mean(1)
            losses.sum().backward()
        share = (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = share
            for p in group["params"]:
                p.grad *= rates
        optimizer.step()
    return heads


def _head(cfg: Grid, dim: int, classes: int, draws: torch.Generator) -> nn.ParameterList:
    weight = torch.empty(1, dim, classes).normal_(0, 0.01, generator=draws)
    count = len(cfg.rates)
    return nn.ParameterList([weight.repeat(count, 1, 1), torch.zeros(count, 1, classes)])


def _scores(
    heads: list[nn.ParameterList], x: Float[Tensor, "n d"], parts: dict[str, Int[Tensor, "_"]]
) -> list[Float[Tensor, "r n k"]]:
    return [x[:, rows] @ h[0] + h[1] for h, rows in zip(heads, parts.values(), strict=True)]


def inputs(width: int, model: Backbone) -> dict[str, Int[Tensor, "_"]]:
    """Which of the columns [CLS of 4 blocks, mean token] each input takes."""
    columns = torch.arange(width)
    if not isinstance(model, PatchBackbone):
        return {"pooled": columns}
    dim, count = model.dim, blocks(model)
    last, mean = columns[(count - 1) * dim : count * dim], columns[count * dim :]
    return {
        "last CLS": last,
        "last CLS + mean": torch.cat([last, mean]),
        f"{count} CLS": columns[: count * dim],
        f"{count} CLS + mean": columns,
    }
