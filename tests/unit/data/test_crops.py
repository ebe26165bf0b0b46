"""Crops with labels: they stay together, and depend on nothing but keys."""

from dataclasses import replace

import masks
import numpy as np
import pytest
import torch

from saccade.core import IGNORED, Cropping
from saccade.data.crops import CropLoader, scaled, whole_pictures
from saccade.data.segmentation import open_masked
from saccade.recipe import Normalize

PLAIN = Normalize(mean=(0.0,) * 3, std=(1.0,) * 3)
CUT = Cropping(scale=(0.6, 1.6), size=(32, 32))


@pytest.fixture
def data(tmp_path):
    return str(masks.folders(tmp_path, {"train": masks.draw(6, 0), "val": masks.draw(3, 1)}))


def loader(data, cropping=CUT, *, batch_size=2, seed=0, **settings):
    settings = {"threads": 1, **settings}
    return CropLoader(
        open_masked(data), cropping, PLAIN, batch_size=batch_size, seed=seed, **settings
    )


def same(a, b):
    labels = zip(a.labels, b.labels, strict=True)
    return torch.equal(a.images, b.images) and all(torch.equal(x, y) for x, y in labels)


def test_labels_stay_on_their_colors(data):
    colors = torch.tensor(masks.COLORS) / 255
    seen = 0
    for batch in loader(data).batches(0):
        for image, labels in zip(batch.images, batch.labels, strict=True):
            filled = (image == 0).all(0)
            assert (labels[filled] == IGNORED).all()
            nearest = (image[:, None] - colors.T[:, :, None, None]).abs().sum(0).argmin(0)
            known = labels != IGNORED
            agreed = (nearest == labels)[known].float().mean()
            assert agreed > 0.9  # edges are blended
            seen += int(known.sum())
    assert seen > 3000


def test_a_crop_of_the_whole_picture_is_the_picture(data):
    whole = Cropping(scale=(1.0, 1.0), size=(44, 60), flip=0.0)
    batch = next(loader(data, whole).batches(0))
    pictures, labels = masks.draw(6, 0)
    for image, found, i in zip(batch.images, batch.labels, batch.index.tolist(), strict=True):
        want = torch.from_numpy(pictures[i]).permute(2, 0, 1) / 255
        torch.testing.assert_close(image[:, :40, :56], want)
        np.testing.assert_array_equal(found[:40, :56].numpy(), labels[i])
        assert (image[:, 40:] == 0).all()
        assert (image[:, :, 56:] == 0).all()
        assert (found[40:] == IGNORED).all()
        assert (found[:, 56:] == IGNORED).all()


def test_the_scale_is_that_of_the_short_side(data):
    half = Cropping(short=20, scale=(1.0, 1.0), size=(20, 28), flip=0.0)
    batch = next(loader(data, half).batches(0))
    _, labels = masks.draw(6, 0)
    for found, i in zip(batch.labels, batch.index.tolist(), strict=True):
        agreed = (found.numpy() == labels[i][1::2, 1::2]).mean()
        assert agreed == 1
    assert scaled(40, 56, 20) == (20, 28)
    assert scaled(56, 40, 0) == (56, 40)


def test_a_mirrored_crop_is_the_crop_mirrored(data):
    plain, mirrored = (
        next(loader(data, replace(CUT, scale=(0.9, 1.0), size=(24, 24), flip=p)).batches(0))
        for p in (0.0, 1.0)
    )
    torch.testing.assert_close(plain.images.flip(3), mirrored.images)
    for a, b in zip(plain.labels, mirrored.labels, strict=True):
        assert torch.equal(a.flip(1), b)


def test_batches_depend_on_seed_epoch_and_step_alone(data):
    jittered = replace(CUT, jitter=1.0)
    batches = list(loader(data, jittered).batches(1))
    assert len(batches) == 3
    for other in (
        list(loader(data, jittered, threads=3).batches(1)),
        [None, *loader(data, jittered).batches(1, start=1)],
    ):
        assert all(same(a, b) for a, b in zip(batches[1:], other[1:], strict=True))
    ranks = [list(loader(data, jittered, rank=r, world=2).batches(1)) for r in (0, 1)]
    for whole, *parts in zip(batches, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([p.images for p in parts]))
    assert not same(batches[0], next(loader(data, jittered).batches(2)))
    assert not same(batches[0], next(loader(data, jittered, seed=1).batches(1)))
    plain = next(loader(data).batches(1))
    assert not torch.equal(batches[0].images, plain.images)
    assert all(torch.equal(a, b) for a, b in zip(batches[0].labels, plain.labels, strict=True))


def test_a_test_sees_whole_pictures_of_one_size_together(tmp_path):
    wide, tall = masks.draw(3, 0), masks.draw(2, 1, (56, 40))
    splits = {"val": ([*wide[0], *tall[0]], [*wide[1], *tall[1]]), "train": wide}
    source = open_masked(str(masks.folders(tmp_path, splits)), split="test").pictures
    unreadable = {}
    (tmp_path / "masks" / "val" / "1.png").write_bytes(b"x")
    batches = list(
        whole_pictures(
            source,
            Cropping(short=20),
            PLAIN,
            batch_size=4,
            threads=1,
            device=torch.device("cpu"),
            bad=unreadable,
        )
    )
    assert [b.index.tolist() for b in batches] == [[0, 2], [3, 4]]
    assert [tuple(b.images.shape[2:]) for b in batches] == [(20, 28), (28, 20)]
    assert list(unreadable) == [1]
    np.testing.assert_array_equal(batches[1].labels[1].numpy(), tall[1][1])
    assert batches[1].stored == [(56, 40)] * 2


WRONG = {
    "scale": ({"scale": (0.0, 1.0)}, "range above 0"),
    "size": ({"size": (0, 4)}, "whole pixels"),
    "flip": ({"flip": 1.5}, "probability"),
    "strength": ({"strength": (0.1, 0.1, 0.1, 0.7)}, "hue at most"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_setting_that_cannot_be_is_named(data, what):
    changes, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        loader(data, replace(CUT, **changes))
    with pytest.raises(ValueError, match="batch_size=7 is larger"):
        loader(data, batch_size=7)
