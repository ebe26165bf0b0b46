"""Judging features without labels.

On center crops of up to 2,000 pictures: RankMe (Garrido et al. 2023, arXiv:2210.02885), alpha-ReQ
(Agrawal et al. 2022, OpenReview ii9X4vtZGTZ) and uniformity (Wang and Isola 2020,
arXiv:2005.10242). On ten augmented views of up to 500 pictures (random resized crop of area .2 to
1, flip, SimCLR's color jitter at half strength, grayscale): LiDAR (Thilak et al. 2023,
arXiv:2312.04000) and, on the first two views, alignment (Wang and Isola). The pictures are the test
pictures; their labels are not read.

Deviation: LiDAR's authors take the features behind the projector, 1,000 pictures and 50 views drawn
as the method's own; the backbone's features of one fixed augmentation compare any two backbones.
Intervals are by the jackknife over ten groups of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import View
from ..data.loader import ViewLoader
from ..data.source import Subset
from ..nn.functional import alignment, alpha_req, lidar, rankme, uniformity
from .features import Data, evaluating
from .interval import jackknife
from .results import Figure

PICTURES, VIEWS = 500, 10
BATCH = 50  # pictures
ROWS = 2000  # features at most: singular values cost rows x width^2


def run(protocol: str, data: Data) -> Iterator[Figure]:
    """RankMe first. Higher rank and LiDAR are better; lower alignment and uniformity are."""
    x = data.rows("pooled", train=False).x[:ROWS].cpu()
    if len(x) < 20:
        raise ValueError(f"setting data: {len(x)} pictures are too few to judge; give 20 or more")
    plain = {"dim": x.shape[1]}
    for name, statistic in (
        ("RankMe", rankme),
        ("alpha-ReQ", alpha_req),
        ("uniformity", uniformity),
    ):
        yield _figure(name, statistic, x, plain)
    views = _views(data).cpu()  # [N, V, D]
    settings = {"dim": x.shape[1], "views": VIEWS}
    yield _figure("LiDAR", lidar, views, settings)
    yield _figure("alignment", lambda v: alignment(v[:, 0], v[:, 1]), views, settings)


def _figure(name: str, statistic: Callable[[Tensor], Tensor], x: Tensor, settings: dict) -> Figure:
    def of(rows: np.ndarray) -> float:
        return statistic(x[torch.from_numpy(rows)]).item()

    return Figure(name, jackknife(of, len(x)), len(x), settings)


def _views(data: Data) -> Float[Tensor, "n v d"]:
    n = min(len(data.test), PICTURES)
    rows = np.linspace(0, len(data.test) - 1, n).round().astype(np.int64)
    color = data.test.channels == 3
    loader = ViewLoader(
        Subset(data.test, rows),
        (
            View(
                count=VIEWS,
                size=data.preprocess.size,
                crop=(0.2, 1.0),
                jitter=0.8 if color else 0.0,
                grayscale=0.2 if color else 0.0,
                blur=0.0,
            ),
        ),
        data.preprocess.normalize,
        batch_size=min(BATCH, n),
        seed=data.seed,
        threads=data.threads,
        device=next(data.model.parameters()).device,
    )
    found = []
    with closing(loader.batches(0)) as stream:
        for batch in stream:
            with evaluating(data.model):
                found.append(torch.stack([data.model(v).float() for v in batch.images], 1))
    return torch.cat(found)
