import threading

import pytest
import torch

from saccade.core import View
from saccade.data import open_source
from saccade.data.loader import ViewLoader, permutation
from saccade.data.source import BadPicture, Source
from saccade.errors import RunError
from saccade.nn.random import keys
from saccade.recipe import Normalize

VIEWS = (
    View(count=2, size=24, blur=0.5, solarize=0.3, interpolation="bicubic"),
    View(size=15, crop=(0.05, 0.4), order=("blur", "solarize", "grayscale", "jitter", "flip")),
)


class Flaky(Source):
    """Every third picture cannot be read."""

    def __init__(self, source, every=3):
        self.source, self.every = source, every
        self.channels, self.classes, self.labels = 3, (), None
        self.split, self.skipped = "", 0

    def __len__(self):
        return len(self.source)

    def stored(self, i):
        if i % self.every == 0:
            raise BadPicture(self.name(i), "torn")
        return self.source.stored(i)

    def name(self, i):
        return f"picture {i}"


def loader(source, **options):
    options = {"batch_size": 4, "seed": 3} | options
    return ViewLoader(source, options.pop("views", VIEWS), Normalize(), **options)


def assert_equal(a, b):
    for name in ("images", "boxes", "flips"):
        for x, y in zip(getattr(a, name), getattr(b, name), strict=True):
            assert torch.equal(x, y), name
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.key, b.key)


def test_a_batch_has_a_row_for_every_count(noise):
    batch = next(loader(noise(20)).batches(1))
    assert [tuple(x.shape) for x in batch.images] == [(4, 3, 24, 24)] * 2 + [(4, 3, 15, 15)]
    assert [tuple(x.shape) for x in batch.boxes] == [(4, 4)] * 3
    assert [x.dtype for x in batch.flips] == [torch.bool] * 3
    assert torch.equal(batch.key, keys(3, 1, batch.index))
    assert not torch.equal(batch.images[0], batch.images[1])


def test_an_epoch_sees_each_picture_at_most_once_and_fills_every_batch(noise):
    seen = torch.cat([batch.index for batch in loader(noise(11)).batches(0)])
    assert len(seen) == len(seen.unique()) == 8


def test_the_order_is_a_permutation_that_changes_with_epoch_and_seed():
    orders = [permutation(100, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(100))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], permutation(100, 0, 0))


def test_one_and_three_threads_give_the_same_batches(noise):
    source = noise(20)
    one = loader(source, threads=1).batches(2)
    three = loader(source, threads=3, prefetch=4).batches(2)
    for a, b in zip(one, three, strict=True):
        assert_equal(a, b)


def test_two_ranks_put_together_are_one_rank(noise):
    source = noise(12)
    whole = loader(source).batches(0)
    halves = [loader(source, rank=r, world=2).batches(0) for r in range(2)]
    for a, b, c in zip(whole, *halves, strict=True):
        for v in range(3):
            assert torch.equal(a.images[v], torch.cat([b.images[v], c.images[v]]))
            assert torch.equal(a.boxes[v], torch.cat([b.boxes[v], c.boxes[v]]))
        assert torch.equal(a.index, torch.cat([b.index, c.index]))


def test_starting_in_mid_epoch_gives_the_rest_of_it(noise):
    source = noise(16)
    whole = list(loader(source).batches(5))
    rest = list(loader(source).batches(5, start=2))
    assert len(rest) == 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert_equal(a, b)


def test_seed_epoch_and_view_change_the_draws(noise):
    source = noise(4)

    def boxes(seed, epoch):
        batch = next(loader(source, seed=seed).batches(epoch))
        return batch.boxes[0][batch.index.argsort()]

    assert not torch.equal(boxes(0, 0), boxes(1, 0))
    assert not torch.equal(boxes(0, 0), boxes(0, 1))


def test_boxes_and_flips_say_where_the_view_came_from(noise):
    """A picture of its own coordinates shows them again."""
    ramp = torch.arange(64, dtype=torch.uint8) * 4
    source = noise(8, size=64)
    source.pictures[..., 0] = ramp  # x
    source.pictures[..., 1] = ramp[:, None]  # y
    view = View(size=32, jitter=0.0, grayscale=0.0, blur=0.0, crop=(0.1, 0.5))
    raw = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batch = next(ViewLoader(source, (view,), raw, batch_size=8, seed=0).batches(0))
    x = batch.images[0] * 255 / 4 / 64 + 0.5 / 64  # in the picture, 0..1
    for picture, box, flip in zip(x, batch.boxes[0], batch.flips[0], strict=True):
        center = (picture[0].mean(), picture[1].mean())
        assert center[0] == pytest.approx(float(box[0] + box[2]) / 2, abs=0.01)
        assert center[1] == pytest.approx(float(box[1] + box[3]) / 2, abs=0.01)
        assert (picture[0, 0, 0] > picture[0, 0, -1]) == flip
    assert 0 < batch.flips[0].sum() < 8


def test_bad_pictures_are_replaced_alike_by_every_loader(noise):
    source = Flaky(noise(15))
    first, second = loader(source, threads=1), loader(source, threads=3)
    for a, b in zip(first.batches(0), second.batches(0), strict=True):
        assert_equal(a, b)
        assert (a.index % 3 != 0).all()
    assert first.bad == dict.fromkeys(first.bad, "torn")
    assert first.bad.keys() <= set(range(0, 15, 3))
    again = list(first.batches(0))  # known bad now
    assert_equal(again[1], next(second.batches(0, start=1)))


def test_labels_are_those_of_the_pictures_also_of_replacements(noise):
    source = Flaky(noise(15))
    assert next(loader(source).batches(0)).labels is None
    source.labels = source.source.labels
    for batch in loader(source).batches(0):
        assert torch.equal(batch.labels, batch.index % 5)


def test_a_set_without_a_readable_picture_ends_the_run(noise):
    with pytest.raises(RunError, match=r"100 pictures in a row cannot be read, .*torn"):
        next(loader(Flaky(noise(9), every=1)).batches(0))


def test_a_failure_in_a_thread_reaches_the_loop(noise):
    source = noise(16)
    it = loader(source)
    source.pictures = source.pictures[:3]  # a bug: pictures that are not there
    with pytest.raises(IndexError):
        list(it.batches(0))


def test_leaving_in_mid_epoch_leaves_no_thread(noise):
    stream = loader(noise(64), threads=3).batches(0)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("saccade-data")]


def test_waiting_is_counted(noise):
    it = loader(noise(16))
    assert it.wait == 0
    list(it.batches(0))
    assert it.wait > 0


def test_a_dirty_folder_fills_its_batches_and_names_the_broken(dirty_folder):
    folder, expected = dirty_folder
    source = open_source(str(folder))
    view = View(size=16, blur=0.0, jitter=0.0)
    it = loader(source, views=(view,), batch_size=50)
    batches = list(it.batches(0))
    assert [len(batch.index) for batch in batches] == [50] * 4
    assert {source.name(i) for i in it.bad} == expected.keys()
    assert all(bool(batch.images[0].isfinite().all()) for batch in batches)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 21}, "batch_size=21 is larger than the data; it has 20 pictures"),
        ({"batch_size": 9, "world": 2}, "batch_size=9 is not a multiple of 2 devices"),
        ({"threads": 0}, "workers=0 is too small"),
        ({"views": (View(flip=1.5),)}, r"views\.0\.flip=1\.5 is not a probability"),
        ({"views": (View(), View(order=("flip",)))}, r"views\.1\.order=.* must name jitter once"),
        ({"views": (View(crop=(0.5, 1.2)),)}, r"crop=\(0\.5, 1\.2\) is not a range of area"),
        ({"views": (View(strength=(0.0, 0.0, 0.0, 0.6)),)}, "hue at most 0.5"),
    ],
)
def test_settings_that_cannot_be_are_named(noise, options, says):
    with pytest.raises(ValueError, match=says):
        loader(noise(20), **options)


@pytest.mark.parametrize("channels", [1, 4])
def test_what_needs_rgb_is_skipped_for_other_channels(noise, channels):
    plain = Normalize(mean=(0.5,) * channels, std=(0.2,) * channels)
    source = noise(8, channels=channels)
    full = View(size=16, strength=(0.4, 0.4, 0.4, 0.1), grayscale=1.0)
    bare = View(size=16, strength=(0.4, 0.4, 0.0, 0.0), grayscale=0.0)
    a, b = (
        next(ViewLoader(source, (view,), plain, batch_size=4, seed=0).batches(0)).images[0]
        for view in (full, bare)
    )
    assert a.shape == (4, channels, 16, 16)
    assert a.equal(b)


def test_normalization_needs_a_value_for_each_channel(noise):
    with pytest.raises(ValueError, match=r"normalize\.mean has 3 values, the data 1 channels"):
        loader(noise(8, channels=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_makes_the_views_of_the_cpu(noise):
    source = noise(8)
    a = next(loader(source).batches(0))
    b = next(loader(source, device="cuda").batches(0))
    assert torch.equal(a.index, b.index.cpu())
    for x, y in zip(a.images, b.images, strict=True):
        assert y.is_cuda
        torch.testing.assert_close(x, y.cpu(), atol=2e-5, rtol=0)
