"""Equations shared by more than one paper or tool. Pure functions of tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cosine_ramp(start: float, end: float, progress: float) -> float:
    """Half a cosine: `start` at progress 0, `end` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def similarity(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Dot products of rows in float32, also under autocast: a temperature magnifies rounding."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def take(x: Float[Tensor, "b n d"], at: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """Rows `at[i]` of sample i."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


@torch.no_grad()
def knn_scores(
    query: Float[Tensor, "b d"],
    bank: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    *,
    classes: int,
    k: int,
    temperature: float,
) -> Float[Tensor, "b classes"]:
    """Votes of the k nearest rows of the bank, each exp(cosine / temperature).

    Rows of query and bank are unit vectors. The largest score is the answer.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(
            f"setting k: {k} neighbors of a bank of {len(bank)}; choose 1..{len(bank)}"
        )
    cosine, nearest = similarity(query, bank).topk(k)  # [B, k]
    return knn_vote(cosine, labels[nearest], classes=classes, temperature=temperature)


@torch.no_grad()
def knn_vote(
    cosine: Float[Tensor, "b k"], labels: Int[Tensor, "b k"], *, classes: int, temperature: float
) -> Float[Tensor, "b classes"]:
    """Weight of each class among neighbors, nearest first, in units of the nearest one's weight."""
    # exp(1 / temperature) would overflow at low temperatures: one common factor per query is free
    votes = ((cosine - cosine[:, :1]) / temperature).exp()
    return votes.new_zeros(len(cosine), classes).scatter_add_(1, labels, votes)


@torch.no_grad()
def feature_std(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Spread of the directions of rows: 0 when all agree, 1 when they fill all d axes alike.

    The standard deviation of each channel of the unit vectors, averaged, times sqrt(d)
    (Chen and He 2021, arXiv:2011.10566).
    """
    return F.normalize(x.float(), dim=-1).std(0).mean() * x.shape[1] ** 0.5


@torch.no_grad()
def rankme(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """How many directions rows really use: exp of the entropy of normalized singular values.

    Between 1 and min(n, d). Garrido et al. 2023, arXiv:2210.02885.
    """
    s = torch.linalg.svdvals(x.float())
    return torch.special.entr(s / s.sum().clamp_min(1e-12)).sum().exp()
