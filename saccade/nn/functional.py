"""Equations shared by more than one paper or tool. Pure functions of tensors."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .dist import highest, summed, world

UNUSED = 1e-30  # mass of a prototype that no sample is near, instead of 0


def cosine_ramp(start: float, end: float, progress: float) -> float:
    """Half a cosine: `start` at progress 0, `end` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def epoch_ramp(start: float, end: float, epoch: int, epochs: int) -> float:
    """From `start` in equal steps, so that the last of the first `epochs` epochs has `end`."""
    return end if epoch >= epochs else start + (end - start) * epoch / max(epochs - 1, 1)


def similarity(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Dot products of rows in float32, also under autocast: a temperature magnifies rounding."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def take(x: Float[Tensor, "b n d"], at: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """Rows `at[i]` of sample i."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def encode(net: nn.Module, crops: list[Tensor]) -> Float[Tensor, "n d"]:
    """Features of all crops in order, in one pass for each run of crops of the same size."""
    runs = itertools.groupby(crops, key=lambda x: x.shape[-2:])
    return torch.cat([net(torch.cat(list(run))) for _, run in runs])


def cross_views(p: Float[Tensor, "2 b k"], log_s: Float[Tensor, "v b k"]) -> Float[Tensor, ""]:
    """Cross-entropy between each of two targets and every other crop, averaged over pairs.

    Target i comes from crop i, so that the two never meet.
    """
    both = p.sum(0)
    targets = [p[1], p[0]] + [both] * (len(log_s) - 2)
    total = torch.stack([(t * s).sum() for t, s in zip(targets, log_s, strict=True)]).sum()
    return -total / ((2 * len(log_s) - 2) * p.shape[1])


def masked_cross_entropy(
    p: Float[Tensor, "k c"], log_s: Float[Tensor, "k c"], mask: Bool[Tensor, "m n"]
) -> Float[Tensor, ""]:
    """Mean over the masked patches of a crop, then over crops; a crop without any counts as 0.

    `p` and `log_s` have a row for each masked patch, in the order of the mask.
    """
    each = (1 / mask.sum(1, keepdim=True).clamp_min(1)).expand_as(mask)[mask]  # [K] weights
    return -((p * log_s).sum(-1) * each).sum() / len(mask)


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "b k"], epsilon: float = 0.05, steps: int = 3
) -> Float[Tensor, "b k"]:
    """Soft assignment of b samples to k prototypes with equal use of every prototype.

    Scales columns, then rows, of exp(scores / epsilon) in turn: rows of the result sum to 1, and
    columns to the same in the limit (Cuturi 2013, arXiv:1306.0895). Samples of all ranks count.
    """
    scores = scores.float()
    top = scores.amax(1, keepdim=True)  # [B, 1]
    table = ((scores - top) / epsilon).exp()  # [B, K] nothing overflows, no row is all zeros
    floor = top.new_full((1,), -torch.inf)  # a rank may have no samples
    row = ((top - highest(torch.cat([top[:, 0], floor]).max())) / epsilon).exp()  # [B, 1] factors
    column = row.new_ones(1, scores.shape[1])
    share = world() * len(scores) / scores.shape[1]  # of a prototype; factors stay in range
    with torch.autocast(scores.device.type, enabled=False):
        for _ in range(steps):
            column = share / summed(row.T @ table).clamp_min(UNUSED)  # [1, K]
            row = 1 / (table @ column.T)
    return row * table * column


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
def deviation(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Root mean square distance of unit rows from their mean: 0 for a constant, 1 far apart."""
    mean = F.normalize(x.float(), dim=1).mean(0)
    return (1 - mean.square().sum()).clamp_min(0).sqrt()


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


@torch.no_grad()
def alpha_req(x: Float[Tensor, "n d"], last: int = 100) -> Float[Tensor, ""]:
    """How fast the variances of features fall: alpha of eigenvalue_i ~ i^-alpha.

    Least squares of log eigenvalue over log i, i = 6 ... `last`, weighted by 1 / i (with fewer
    eigenvalues, all of them from the first on). Agrawal et al. 2022, OpenReview ii9X4vtZGTZ.
    """
    s = torch.linalg.svdvals((x - x.mean(0)).double())
    values = s[s > s[0] * 1e-6].square()  # of the covariance, up to a factor
    first = 5 if len(values) >= 20 else 0
    i = torch.arange(first + 1, min(len(values), last) + 1, device=x.device).double()
    at, log = -i.log(), values[first:last].log()
    weight = 1 / i / (1 / i).sum()
    at = at - (weight * at).sum()
    return ((weight * at * log).sum() / (weight * at.square()).sum()).float()


@torch.no_grad()
def lidar(x: Float[Tensor, "n v d"], delta: float = 1e-4) -> Float[Tensor, ""]:
    """Effective rank of what tells n pictures apart, beyond what tells v views of one apart.

    exp of the entropy of the normalized eigenvalues of W^-1/2 B W^-1/2, where B is the covariance
    of the pictures' means and W that of views about their mean, plus `delta` on its diagonal.
    Thilak et al. 2023, arXiv:2312.04000.
    """
    x = x.double()
    means = x.mean(1)
    spread, within = means - means.mean(0), (x - means[:, None]).flatten(0, 1)
    w = within.T @ within / (len(x) * (x.shape[1] - 1))
    w += delta * torch.eye(len(w), dtype=w.dtype, device=w.device)
    values, vectors = torch.linalg.eigh(w)
    root = vectors / values.sqrt()  # [d, d]: root.T w root = 1
    s = torch.linalg.svdvals(spread @ root).square()
    return torch.special.entr(s / s.sum().clamp_min(1e-12)).sum().exp().float()


@torch.no_grad()
def uniformity(x: Float[Tensor, "n d"], t: float = 2.0) -> Float[Tensor, ""]:
    """log of the mean of exp(-t |u_i - u_j|^2) over pairs of unit vectors: 0 is collapse.

    Wang and Isola 2020, arXiv:2005.10242.
    """
    u = F.normalize(x.float(), dim=-1)
    return torch.pdist(u).square().mul(-t).exp().mean().log()


@torch.no_grad()
def alignment(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared distance between the unit vectors of two views of a picture.

    Wang and Isola 2020, arXiv:2005.10242.
    """
    return (F.normalize(x.float(), dim=-1) - F.normalize(y.float(), dim=-1)).square().sum(1).mean()
