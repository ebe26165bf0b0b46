"""How equal the attention of different queries is: 0 where all of them look at the same.

Cao et al. 2019, arXiv:1904.11492, compare over pairs of queries what goes into a non-local block,
its attention and what it adds; Yin et al. 2020, arXiv:2006.06668, split the pairs' logits.
Rows are queries. Every function gives one number a picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def cosine_distance(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b"]:
    """Mean of (1 - cos) / 2 over all pairs of rows, a row with itself too: in [0, 1]."""
    mean = F.normalize(x.double(), dim=-1).mean(1)  # the mean of all dots is its squared length
    return ((1 - mean.square().sum(-1)) / 2).to(x.dtype)


@torch.no_grad()
def divergence(attention: Float[Tensor, "b n m"]) -> Float[Tensor, "b"]:
    """Mean Jensen-Shannon divergence, in nats, over all pairs of rows of sum 1: in [0, log 2]."""
    a = attention.double()
    own = torch.special.entr(a).sum(-1)  # [B, N]
    both = torch.stack([_mixed(a, row) for row in a.unbind(1)], 1)  # [B, N, N]
    return (both.mean((1, 2)) - own.mean(1)).to(attention.dtype)


def _mixed(a: Float[Tensor, "b n m"], row: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
    """Entropy of the mean of one row and each."""
    return torch.special.entr((a + row[:, None]) / 2).sum(-1)


@torch.no_grad()
def unary_share(logits: Float[Tensor, "b n m"]) -> Float[Tensor, "b"]:
    """Share of the spread over keys that all queries have in common: 1 is one map for all."""
    common = logits.mean(1).var(-1, correction=0)
    return common / logits.var(-1, correction=0).mean(1)


@torch.no_grad()
def mean_entropy(attention: Float[Tensor, "b n m"]) -> Float[Tensor, "b"]:
    """Entropy of the mean row over that of a uniform one: 1 where queries together see all."""
    mean = attention.mean(1)
    return torch.special.entr(mean).sum(-1) / torch.tensor(mean.shape[-1]).log()
