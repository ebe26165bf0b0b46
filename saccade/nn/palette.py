"""A picture's pixels as a few colors: a palette found by k-means, and the nearest color in it.

Colors are red, green and blue in [-1, 1], x / 127.5 - 1 of 8-bit values.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .random import fold, permutation, uniform

SAMPLE = 1 << 16  # points that k-means takes, at most
STEPS = 50  # of Lloyd's algorithm, at most
ROWS = 1 << 14  # points whose distances to all colors are held at a time
SLACK = 1e-3  # by which colors of a file may pass the ends of [-1, 1]


def grid_palette(colors: int) -> Float[Tensor, "k 3"]:
    """Equal steps along red, green and blue: 8 of each for 512 colors (9 bit)."""
    levels = round(colors ** (1 / 3))
    if levels**3 != colors:
        raise ValueError(f"{colors} colors are no grid; choose a cube, such as 512")
    steps = torch.linspace(-1, 1, levels)
    return torch.cartesian_prod(steps, steps, steps)


def nearest(points: Float[Tensor, "n 3"], palette: Float[Tensor, "k 3"]) -> Int[Tensor, "n"]:
    """Which color each point is nearest to, the first of equally near ones."""
    points, palette = points.float(), palette.float()
    exact = "donot_use_mm_for_euclid_dist"  # the rounding of |a|^2 - 2ab + |b|^2 mixes near colors
    parts = [torch.cdist(p, palette, compute_mode=exact).argmin(1) for p in points.split(ROWS)]
    return torch.cat(parts)


def color_loss(
    scores: Float[Tensor, "b n k"],
    tokens: Int[Tensor, "b h w"],
    hidden: Bool[Tensor, "b h w"] | None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the colors of all pixels, or of the hidden ones, averaged in each picture.

    A picture without a hidden pixel counts as zero.
    """
    cost = F.cross_entropy(scores.float().mT, tokens.flatten(1), reduction="none")  # [B, N]
    if hidden is None:
        return cost.mean()
    asked = hidden.flatten(1)
    return ((cost * asked).sum(1) / asked.sum(1).clamp_min(1)).mean()


@torch.no_grad()
def kmeans(points: Float[Tensor, "n 3"], colors: int, seed: int = 0) -> Float[Tensor, "k 3"]:
    """Centers of clusters of the points: k-means++, then Lloyd's algorithm.

    On the CPU, on SAMPLE points at most: the same on every rank and device.
    """
    points = points.cpu().double()
    points = points[permutation(len(points), seed, 0)[:SAMPLE]]
    return lloyd(points, seeds(points, colors, seed), STEPS).float()


def seeds(points: Float[Tensor, "n 3"], colors: int, seed: int) -> Float[Tensor, "k 3"]:
    """k-means++: each point is drawn by its squared distance to the nearest one drawn before."""
    draws = uniform(fold(torch.tensor([seed]), 0), colors, "kmeans")[0].double()
    at = int(draws[0] * len(points))
    chosen, far = [at], (points - points[at]).square().sum(1)
    for draw in draws[1:]:
        total = far.cumsum(0)
        at = min(int(torch.searchsorted(total, draw * total[-1], right=True)), len(points) - 1)
        chosen.append(at)
        far = torch.minimum(far, (points - points[at]).square().sum(1))
    return points[chosen]


def lloyd(
    points: Float[Tensor, "n 3"], centers: Float[Tensor, "k 3"], steps: int
) -> Float[Tensor, "k 3"]:
    """Each center moved to the mean of the points nearest to it, until none changes sides.

    A center that no point is nearest to stays where it is.
    """
    before = torch.full((len(points),), -1)
    for _ in range(steps):
        own = nearest(points, centers)
        if torch.equal(own, before):
            break
        count = torch.bincount(own, minlength=len(centers))[:, None]
        total = torch.zeros_like(centers).index_add_(0, own, points)
        centers = torch.where(count > 0, total / count.clamp_min(1), centers)
        before = own
    return centers


def read_palette(path: str | Path, colors: int) -> Float[Tensor, "k 3"]:
    """Released colors: a .npy or .npz array, or `clusters` of transformers' JSON."""
    path = Path(path)
    try:
        if path.suffix == ".json":
            found = np.asarray(json.loads(path.read_text())["clusters"], dtype=np.float32)
        else:
            held = np.load(path, allow_pickle=False)
            found = held if isinstance(held, np.ndarray) else held[held.files[0]]
    except FileNotFoundError:
        raise ValueError(f"setting clusters: {path} is not there") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"setting clusters: {path} holds no plain array of colors ({type(error).__name__}); "
            "give .npy, .npz or a preprocessor_config.json"
        ) from None
    if found.shape != (colors, 3) or found.dtype.kind not in "fiu":
        raise ValueError(
            f"setting clusters: {path} is {list(found.shape)} of {found.dtype}, "
            f"not [{colors}, 3] numbers"
        )
    if not np.abs(found).max() <= 1 + SLACK:
        raise ValueError(
            f"setting clusters: colors of {path} leave [-1, 1]; give x / 127.5 - 1 of 8-bit values"
        )
    return torch.from_numpy(found.astype(np.float32)).clamp(-1, 1)
