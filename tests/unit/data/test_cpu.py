"""The boxes and scales that pictures are decoded for, and views of pictures decoded smaller."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.core import StrongSet, View
from saccade.data import augment, drawn
from saccade.data.cpu import Maker
from saccade.data.loader import ViewLoader
from saccade.data.source import Source
from saccade.nn.random import fold, keys
from saccade.recipe import Normalize


@pytest.mark.parametrize(
    ("height", "width", "size", "scale"),
    [(3000, 4000, 224, 8), (1792, 1792, 224, 8), (1791, 4000, 224, 4), (448, 448, 224, 2),
     (447, 3000, 224, 1), (100, 100, 224, 1)],
)  # fmt: skip
def test_the_scale_is_the_largest_that_leaves_every_crop_its_pixels(height, width, size, scale):
    boxes = np.array([[0, 0, 4000, 4000], [5, 9, height, width]])
    assert drawn.largest_scale(boxes, np.array([size, size])) == scale


def test_edges_are_the_boxes_as_shares():
    maker = Maker([View(size=8), View(size=4, crop=(0.1, 0.2))], Normalize())
    draws = maker.draw(torch.tensor([3, 7]))
    maker.boxes(draws, 1, 50, 80)
    for (top, left, h, w), edge in zip(draws.boxes[1].tolist(), draws.edges[1], strict=True):
        assert edge == pytest.approx([left / 80, top / 50, (left + w) / 80, (top + h) / 50])


class Files(Source):
    channels, classes, labels, split, skipped = 3, (), None, "", 0

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def stored(self, i):
        return self.files[i]

    def name(self, i):
        return str(i)


def soft(height, width, orientation=1):
    """Smooth colors, so that a JPEG of them is nearly exact at every scale."""
    y, x = np.mgrid[:height, :width]
    bands = [128 + 100 * np.sin(x / 40), 128 + 100 * np.cos(y / 30), 255 * x / width]
    picture = Image.fromarray(np.stack(bands, 2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = [io.BytesIO(), io.BytesIO()]
    picture.save(files[0], "JPEG", quality=98, exif=exif)
    picture.save(files[1], "PNG", exif=exif)
    return [file.getvalue() for file in files]


@pytest.mark.parametrize("orientation", [1, 6])
def test_views_of_a_jpeg_decoded_smaller_are_those_of_the_whole_picture(orientation):
    """A PNG of the same pixels is always decoded at its full size."""
    files = soft(400, 600, orientation)
    views = (View(count=2, size=24, crop=(0.3, 1.0), jitter=0.0, blur=0.0, grayscale=0.0),)
    plain = Normalize(mean=(0.0,) * 3, std=(1.0,) * 3)
    made = []
    for file in files:
        loader = ViewLoader(Files([file] * 4), views, plain, batch_size=4, seed=0, threads=1)
        made.append(next(loader.batches(0)))
    for a, b, x, y in zip(*(m.images for m in made), *(m.boxes for m in made), strict=True):
        assert torch.equal(x, y)
        assert (a - b).abs().max() < 8 / 255  # JPEG against PNG: colors at half resolution
        assert (a - b).abs().mean() < 1 / 255


@pytest.mark.parametrize("name", ["randaugment", "clsa"])
def test_strong_views_are_those_of_the_batched_path(name):
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    row = View(size=20, crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, strong=StrongSet(name=name))
    maker, key = Maker([row], Normalize()), keys(0, 0, torch.arange(6))
    draws, out = maker.draw(key), torch.empty(6, 3, 20, 20)
    draws.boxes[:] = 0, 0, 20, 20
    for i in range(6):
        maker.make(picture, 1, draws, i, out.flatten())
    for rows in (range(2), range(2, 6)):
        maker.strengthen(draws, rows, out.flatten())
    want = augment.color(picture.expand(6, -1, -1, -1), row, fold(key, 0), Normalize())
    assert torch.equal(out, want)


def test_one_and_eight_threads_and_two_ranks_give_the_same_bytes():
    files = [soft(40 + k, 60 - k)[0] for k in range(16)]
    views = (View(count=2, size=24, solarize=0.2), View(size=16))

    def made(**options):
        loader = ViewLoader(Files(files), views, Normalize(), batch_size=8, seed=3, **options)
        return list(loader.batches(1))

    one = made(threads=1)
    for batch, other in zip(one, made(threads=8, prefetch=4), strict=True):
        for x, y in zip(batch.images, other.images, strict=True):
            assert torch.equal(x, y)
    ranks = [made(threads=2, rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(one, *ranks, strict=True):
        for v, x in enumerate(batch.images):
            assert torch.equal(x, torch.cat([part.images[v] for part in parts]))
