"""Retrieval: does the nearest part of the training pictures show the same class?

Each test picture ranks all training pictures by cosine. Its average precision is the mean, over the
pictures of its class, of the share of that class among what is ranked as high; the figure is the
mean over test pictures whose class has a training picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .features import Data
from .results import Score

CELLS = 1 << 23  # cosines at a time


def run(protocol: str, data: Data) -> Iterator[Score]:
    bank, query = data.features("pooled")
    known = torch.isin(query.y, bank.y)
    found = average_precisions(query.x[known], query.y[known], bank.x, bank.y)
    settings = {"bank": len(bank.x), "left_out": int((~known).sum())}
    yield Score("mAP", found.cpu().numpy(), settings)


def average_precisions(
    query: Float[Tensor, "n d"],
    truth: Int[Tensor, "n"],
    bank: Float[Tensor, "m d"],
    labels: Int[Tensor, "m"],
) -> Float[Tensor, "n"]:
    """Of each query's ranking of the bank; every query needs one row of its class."""
    bank = F.normalize(bank, dim=1)
    places = torch.arange(1, len(bank) + 1, device=bank.device)
    size = max(1, CELLS // len(bank))
    found = []
    for x, y in zip(query.split(size), truth.split(size), strict=True):
        order = (F.normalize(x, dim=1) @ bank.T).argsort(1, descending=True)
        same = (labels[order] == y[:, None]).double()  # [b, m]
        found.append((same.cumsum(1) / places * same).sum(1) / same.sum(1))
    return torch.cat(found).float()
