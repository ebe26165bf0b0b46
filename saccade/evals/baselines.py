"""What needs no network: the most frequent class, color histograms, gradient histograms.

Pictures are shrunk or enlarged to a short side of 64 pixels and cropped to the center 64 x 64.
`chance`: the class most frequent in the training pictures; the settings give one over the number
of classes. `color-histogram`: joint histogram of the first three channels, 8 bins each, compared
by Bhattacharyya's coefficient (the cosine of square roots). `hog` (Dalal and Triggs 2005):
9 unsigned orientations, 8 x 8 pixel cells, 2 x 2 cell blocks, L2-hys, compared by cosine. Both by
a vote of the 10 nearest, weighted by exp(cosine / .07) as in `knn-dino`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..data.bad import Bad
from ..data.check import scan, statistics
from ..data.plain import pictures
from ..data.source import Source
from ..recipe import Normalize
from .features import check_any, translate
from .knn import neighbors, vote
from .results import Score

SIZE = 64  # pixels
BINS = 8  # per channel
ORIENTATIONS = 9  # over half a turn
CELL = 8  # pixels
K = 10
WIDE = 512  # pictures, evenly spread, for the mean and deviation of what is not 8-bit
TEMPERATURE = 0.07


@dataclass(frozen=True, slots=True)
class Described:
    """Pictures as 64 x 64 colors and what became of them."""

    vectors: dict[str, Float[Tensor, "n _"]]
    y: Int[Tensor, "n"]
    index: Int[Tensor, "n"]  # position in the source

    def only(self, rows: Int[Tensor, "m"]) -> Described:
        """Those that stand in these positions of the source."""
        mine = torch.isin(self.index, rows)
        vectors = {name: v[mine] for name, v in self.vectors.items()}
        return Described(vectors, self.y[mine], self.index[mine])


def run(train: Source, test: Source, threads: int = 2) -> Iterator[tuple[str, Score]]:
    """Name and score of every baseline, cheapest first."""
    normalize = unit(train, threads)
    bank, query = (describe(source, threads, normalize) for source in (train, test))
    yield from judge(bank, query, train.classes, test.classes)


def judge(
    bank: Described, query: Described, classes: tuple[str, ...], asked: tuple[str, ...]
) -> Iterator[tuple[str, Score]]:
    """The same of pictures described before; `asked` are the classes of the query."""
    y = translate(classes, asked)[query.y]
    most = int(bank.y.bincount().argmax())
    yield (
        "chance",
        Score("top1", (y == most).numpy(), {"answer": classes[most], "uniform": 1 / len(classes)}),
    )
    k = min(K, len(bank.y))
    for name, vectors in bank.vectors.items():
        near = neighbors(query.vectors[name], vectors, k)
        scores = vote(near, bank.y, len(classes), k, TEMPERATURE)
        settings = {"k": k, "temperature": TEMPERATURE, "bank": len(bank.y), "size": SIZE}
        yield name, Score(f"top1@{k}", (scores.argmax(1) == y).numpy(), settings)


def unit(train: Source, threads: int) -> Normalize:
    """8-bit pixels as 0..1; of wide ones each band's mean, 2 deviations up and down, as 0..1."""
    if not train.wide:
        return Normalize(mean=(0.0,) * train.channels, std=(1.0,) * train.channels)
    mean, std = statistics(scan(train, sample=WIDE, threads=threads).looks, train.channels)
    return Normalize(mean=tuple((mean - 2 * std).tolist()), std=tuple((4 * std + 1e-9).tolist()))


def describe(source: Source, threads: int, normalize: Normalize) -> Described:
    """Both descriptors of every readable picture, in one pass."""
    bad: list[Bad] = []
    stream = pictures(
        source,
        size=SIZE,
        resize=SIZE,
        interpolation="bilinear",
        normalize=normalize,
        batch_size=256,
        threads=threads,
        bad=bad,
    )
    color, edges, at = [], [], []
    for x, index in stream:
        color.append(color_histogram(x).sqrt())
        edges.append(hog(x))
        at.append(index)
    check_any(len(at), bad)
    vectors = {"color-histogram": torch.cat(color), "hog": torch.cat(edges)}
    index = torch.cat(at)
    return Described(vectors, torch.from_numpy(source.labels)[index], index)


def color_histogram(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
    """Share of the pixels in each cell of an 8 x 8 x 8 color cube, of pictures in [0, 1]."""
    level = (x[:, :3].flatten(2) * BINS).long().clamp(0, BINS - 1)  # [B, C, N]
    place = BINS ** torch.arange(level.shape[1])
    cell = (level * place[:, None]).sum(1)  # [B, N]
    counts = x.new_zeros(len(x), BINS ** level.shape[1])
    counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=x.dtype))
    return counts / cell.shape[1]


def hog(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
    """Histograms of oriented gradients of the channel mean, blocks of unit length."""
    gray = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx = gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2]
    dy = gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]
    strength = (dx**2 + dy**2).sqrt()  # [B, 1, H, W]
    turn = torch.atan2(dy, dx).remainder(math.pi) * ORIENTATIONS / math.pi - 0.5
    lower = turn.floor()
    share = turn - lower  # of the upper of the two nearest bins
    maps = x.new_zeros(len(x), ORIENTATIONS, *x.shape[2:])
    maps.scatter_add_(1, lower.long() % ORIENTATIONS, strength * (1 - share))
    maps.scatter_add_(1, (lower.long() + 1) % ORIENTATIONS, strength * share)
    cells = F.avg_pool2d(maps, CELL) * CELL**2  # [B, 9, H/8, W/8]
    blocks = F.unfold(cells, 2).mT  # [B, blocks, 36]
    blocks = F.normalize(F.normalize(blocks, dim=-1).clamp(max=0.2), dim=-1)
    return blocks.flatten(1)
