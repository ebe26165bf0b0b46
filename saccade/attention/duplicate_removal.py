"""Duplicate removal: a network says which of the detections of an object is the one to keep.

Hu et al. 2018, arXiv:1711.11575, section 4.3. The first N detections of each class, by score s0:
    f = W_R E(rank) + W_F x,    f' = relu(f + relation(f, boxes)),    s1 = sigmoid(W f'),
with one s1 for each threshold of overlap and all weights shared by the classes; E is 512 sines and
then 512 cosines of rank / 1000^(i/512). The score of a detection is s0 s1, in a test with the mean
of s1 over thresholds, and that is what learns, by
    loss = -1/(N thresholds) sum 4 t log(s0 s1) + (1 - t) log(1 - s0 s1).
t is 1 for the best scored detection of each true object, among those of its class that overlap
it more than the threshold, and it more than any other of that class. Boxes get no gradient, scores
and features do: the detector learns with it. W starts from a bias of -3, so that s1 is .047 and
scores are low at first. Logarithms are of 1e-8 more, as in the official code: a score far below
that has no gradient left, and too high a learning rate ends there. K classes of N detections hold
64 K N^2 numbers of geometry, 205 MB for 80 classes of 100.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .object_relation import ObjectRelation

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
RANKS = 1024  # channels of E
POSITIVE = 4.0
TINY = 1e-8


class Ranked(NamedTuple):
    """The first detections of each class, best s0 first."""

    rows: Int[Tensor, "c n"]  # which of the given detections
    boxes: Float[Tensor, "c n 4"]
    first: Float[Tensor, "c n"]  # s0
    kept: Float[Tensor, "c n t"]  # s1 for each threshold

    @property
    def scores(self) -> Float[Tensor, "c n t"]:
        return self.first[..., None] * self.kept


class DuplicateRemoval(nn.Module):
    def __init__(
        self,
        features: int,
        *,
        first: int = 100,  # detections of a class
        channels: int = 128,
        thresholds: tuple[float, ...] = THRESHOLDS,
    ) -> None:
        super().__init__()
        self.first, self.thresholds = first, thresholds
        self.rank = nn.Linear(RANKS, channels)
        self.feature = nn.Linear(features, channels)
        self.relation = ObjectRelation(channels)
        self.out = nn.Linear(channels, len(thresholds))
        for layer in (self.rank, self.feature, self.out):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.out.bias, -3.0)

    def forward(
        self,
        scores: Float[Tensor, "n c"],  # of the classes, without the background
        x: Float[Tensor, "n d"],
        boxes: Float[Tensor, "n c 4"],
    ) -> Ranked:
        """Of the detections of one picture; each class may have boxes of its own."""
        best, rows = scores.T.sort(dim=1, descending=True, stable=True)
        best, rows = best[:, : self.first], rows[:, : self.first]
        places = torch.arange(rows.shape[1], device=x.device, dtype=boxes.dtype)
        f = self.rank(ranks(places)) + self.feature(x)[rows]  # [C, N, E]
        mine = boxes.transpose(0, 1).gather(1, rows[..., None].expand(-1, -1, 4))
        f = self.relation(f, mine, torch.ones_like(rows, dtype=torch.bool)).relu()
        logits = self.out(f)
        return Ranked(
            rows, mine, best, logits.to(torch.promote_types(f.dtype, torch.float32)).sigmoid()
        )

    def loss(self, ranked: Ranked, targets: Float[Tensor, "c n t"]) -> Float[Tensor, ""]:
        """Summed over classes, mean over detections of a class and thresholds."""
        s = ranked.scores
        each = POSITIVE * targets * (s + TINY).log() + (1 - targets) * (1 - s + TINY).log()
        return -each.sum() / max(s.shape[1] * s.shape[2], 1)

    def targets(
        self, overlap: Float[Tensor, "c n g"], own: Bool[Tensor, "c g"]
    ) -> Float[Tensor, "c n t"]:
        """t of ranked detections, from their overlaps with true objects and those of each class."""
        if not own.shape[1]:
            return overlap.new_zeros(*overlap.shape[:2], len(self.thresholds))
        overlap = overlap.masked_fill(~own[:, None], -1.0)
        most, nearest = overlap.max(2)  # [C, N]
        objects = torch.arange(own.shape[1], device=own.device)
        levels = torch.tensor(self.thresholds, device=own.device, dtype=overlap.dtype)
        counts = (most[..., None] > levels)[:, :, None]  # [C, N, 1, T]
        candidate = counts & (nearest[..., None] == objects)[..., None]  # [C, N, G, T]
        best = candidate & (candidate.cumsum(1) == 1)
        return best.any(2).to(overlap.dtype)


def ranks(places: Float[Tensor, "n"]) -> Float[Tensor, "n 1024"]:
    """E of ranks counted from 0."""
    i = torch.arange(RANKS // 2, device=places.device, dtype=places.dtype)
    angle = places[:, None] / 1000 ** (2 * i / RANKS)
    return torch.cat([angle.sin(), angle.cos()], -1)
