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

BLOCK = 1024  # test pictures compared with the whole bank at a time


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
    """Cosine and row of the k nearest rows of the bank, nearest first."""
    bank = F.normalize(bank, dim=1)
    near = [(F.normalize(x, dim=1) @ bank.T).topk(k) for x in query.split(BLOCK)]
    return torch.cat([n.values for n in near]), torch.cat([n.indices for n in near])


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
