"""Weighted nearest neighbors on frozen features.

Wu et al. 2018, arXiv:1805.01978; Caron et al. 2021, arXiv:2104.14294 (eval_knn.py). With unit
features, the k training pictures nearest by cosine vote for their class with weight
exp(cosine / t). `knn-dino`: t .07, k 10, 20, 100, 200, of which 20 is the headline.
`knn-lightly`: t .1, k 200. Test pictures are taken in blocks of any size (DINO's script divides
the test set in 100 blocks and fails below 100 pictures).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..nn.functional import knn_vote
from .features import Data
from .results import Score

QUERIES, ROWS = 1024, 8192  # of test pictures and bank compared at a time: 32 MiB of cosines


@dataclass(frozen=True, kw_only=True)
class Knn:
    k: tuple[int, ...]  # headline first
    temperature: float


PROTOCOLS = {
    "knn-dino": Knn(k=(20, 10, 100, 200), temperature=0.07),
    "knn-lightly": Knn(k=(200,), temperature=0.1),
}


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Top-1 for every k that the bank can fill; the others are named in the settings."""
    cfg = PROTOCOLS[protocol]
    bank, query = data.features("pooled")
    ks = [k for k in cfg.k if k <= len(bank.x)]
    if not ks:
        raise ValueError(
            f"setting data: {len(bank.x)} training pictures are fewer than the {min(cfg.k)} "
            f"neighbors of {protocol}; give more pictures"
        )
    near = neighbors(query.x, bank.x, max(ks))
    dropped = [k for k in cfg.k if k not in ks]
    for k in ks:
        scores = vote(near, bank.y, data.classes, k, cfg.temperature)
        settings = {"k": k, "temperature": cfg.temperature, "bank": len(bank.x), "dropped": dropped}
        yield Score(f"top1@{k}", (scores.argmax(1) == query.y).cpu().numpy(), settings)


def neighbors(
    query: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Cosine and row of the k nearest rows of the bank, nearest first.

    Memory beyond the two arguments and the answer is one block of cosines, whatever their sizes.
    """
    unit = F.normalize(query, dim=1)
    best = query.new_full((len(query), k), -torch.inf)
    row = torch.zeros(len(query), k, dtype=torch.long, device=query.device)
    for start in range(0, len(bank), ROWS):
        block = F.normalize(bank[start : start + ROWS], dim=1).T  # [D, rows]
        for first in range(0, len(query), QUERIES):
            at = slice(first, first + QUERIES)
            values, place = _above(unit[at] @ block, best[at, -1:], k)
            best[at], chosen = torch.cat([best[at], values], 1).topk(k)
            row[at] = torch.cat([row[at], place + start], 1).gather(1, chosen)
    return best, row


def _above(
    cosine: Float[Tensor, "b r"], floor: Float[Tensor, "b 1"], k: int
) -> tuple[Float[Tensor, "b c"], Int[Tensor, "b c"]]:
    """What may be among the k nearest: the few above the k-th so far, filled up with -inf."""
    if not floor.isfinite().all():
        near = cosine.topk(min(k, cosine.shape[1]))
        return near.values, near.indices
    query, column = (cosine > floor).nonzero(as_tuple=True)
    counts = query.bincount(minlength=len(cosine))
    width = int(counts.max())
    slot = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    values = cosine.new_full((len(cosine), width), -torch.inf)
    place = torch.zeros(len(cosine), width, dtype=torch.long, device=cosine.device)
    values[query, slot] = cosine[query, column]
    place[query, slot] = column
    return values, place


def vote(
    near: tuple[Float[Tensor, "n _"], Int[Tensor, "n _"]],
    labels: Int[Tensor, "m"],
    classes: int,
    k: int,
    temperature: float,
) -> Float[Tensor, "n c"]:
    """Weight of each class among the k nearest, in units of the nearest one's weight."""
    cosine, row = near[0][:, :k], near[1][:, :k]
    return knn_vote(cosine, labels[row], classes=classes, temperature=temperature)
