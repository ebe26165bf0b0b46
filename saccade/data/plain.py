"""Pictures as evaluation sees them: short side resized, center cropped, normalized."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ..recipe import Normalize
from .augment import normalizer
from .bad import Bad
from .loader import check_channels
from .source import BadPicture, Source
from .threads import ordered


def pictures(
    source: Source,
    *,
    size: int,
    resize: int,
    interpolation: Literal["bilinear", "bicubic"],
    normalize: Normalize,
    batch_size: int,
    threads: int,
    indices: Iterable[int] | None = None,
    bad: list[Bad] | None = None,
) -> Generator[tuple[Float[Tensor, "b c h w"], Int64[Tensor, "b"]]]:
    """Batches of pictures and their numbers, in order; resize=0 leaves the pictures' own size.

    Those that cannot be read are left out and appended to `bad`.
    """
    check_channels(normalize, source.channels)
    mean, inverse = normalizer(normalize, torch.device("cpu"))

    def one(i: int) -> Float[Tensor, "c h w"] | Bad:
        try:
            x = source.read(i)
        except BadPicture as error:
            return Bad(error.name, error.reason)
        if resize:
            mode = tv.InterpolationMode(interpolation)
            x = tv.resize(x, [resize], mode, antialias=True)
        x = tv.center_crop(x, [size, size])
        unit = x if source.wide else x.float().mul_(1 / 255)
        return (unit - mean).mul_(inverse)

    def work(numbers: Sequence[int]) -> tuple[list[Tensor], list[int], list[Bad]]:
        done = [(i, one(i)) for i in numbers]
        kept = [(i, x) for i, x in done if isinstance(x, Tensor)]
        lost = [x for _, x in done if isinstance(x, Bad)]
        return [x for _, x in kept], [i for i, _ in kept], lost

    numbers = range(len(source)) if indices is None else [int(i) for i in indices]
    parts = (numbers[k : k + batch_size] for k in range(0, len(numbers), batch_size))
    stream = ordered(work, parts, threads=threads, ahead=threads)
    try:
        for images, index, lost in stream:
            if bad is not None:
                bad.extend(lost)
            if images:
                yield torch.stack(images), torch.tensor(index)
    finally:
        stream.close()
