"""What the network saw: the views of a few pictures, drawn again by the run's own keys."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image

from ..data.loader import ViewLoader
from ..data.source import Source
from ..run import Run
from .pictures import denormalized, square, thumbnail

PICTURES = 4
MOST_VIEWS = 12  # of a picture
SIZE = 128  # pixels on the page at most


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    original: Image.Image  # its central square
    views: list[Image.Image]


def samples(run: Run, source: Source) -> list[Sample]:
    """The views of evenly spread pictures in the first epoch, as the engine made them then."""
    n = min(PICTURES, len(source))
    chosen = torch.arange(n) * len(source) // n
    loader = ViewLoader(
        source,
        run.method.views,
        run.normalize,
        batch_size=n,
        seed=run.seed,
        threads=1,
        order=lambda images, seed, epoch: chosen,
    )
    loader.steps = 1
    with closing(loader.batches(0)) as batches:
        batch = next(islice(batches, 1))
    found = []
    for row, i in enumerate(batch.index.tolist()):
        views = [
            denormalized(x[row], run.normalize, wide=source.wide) for x in batch.images[:MOST_VIEWS]
        ]
        original = thumbnail(source, i, SIZE, run.normalize)
        found.append(Sample(source.name(i), original, [_small(v) for v in views]))
    return found


def _small(picture: Image.Image) -> Image.Image:
    return square(picture, SIZE) if min(picture.size) > SIZE else picture
