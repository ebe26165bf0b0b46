"""Batches of whole pictures: sizes, mirrors, masks, and that they depend on nothing but keys."""

import boxes
import numpy as np
import pytest
import torch

from saccade.core import Framing
from saccade.data.detection import in_memory_annotated, open_annotated
from saccade.data.scenes import SceneLoader, framed_size, whole_pictures
from saccade.recipe import Normalize

PLAIN = Normalize(mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture
def data(tmp_path):
    splits = {"train2017": boxes.draw(6, 0), "val2017": boxes.draw(3, 1, size=(40, 50))}
    return str(boxes.coco(tmp_path, splits))


def loader(data, *, flip=0.5, short=(24, 36, 48), batch_size=2, **settings):
    framing = Framing(short=short, test_short=24, longest=64, flip=flip)
    settings = {"masks": True, "seed": 0, "threads": 1, **settings}
    return SceneLoader(open_annotated(data), framing, PLAIN, batch_size=batch_size, **settings)


def same(a, b):
    return torch.equal(a.images, b.images) and all(
        torch.equal(x, y) for x, y in zip(a.boxes, b.boxes, strict=True)
    )


def test_boxes_and_masks_stay_on_their_squares(data):
    for batch in loader(data).batches(0):
        for i, (h, w) in enumerate(batch.sizes):
            assert (batch.images[i, :, h:] == 0).all()
            assert (batch.images[i, :, :, w:] == 0).all()
            for (x0, y0, x1, y1), k, mask in zip(
                batch.boxes[i], batch.labels[i], batch.masks[i], strict=True
            ):
                x, y = int((x0 + x1) / 2), int((y0 + y1) / 2)
                color = batch.images[i, :, y, x] * 255
                assert torch.allclose(color, torch.tensor(boxes.COLORS[k]).float(), atol=3)
                area = float((x1 - x0) * (y1 - y0))
                assert mask[y, x] == 1
                assert mask.shape == (h, w)
                assert float(mask.sum()) == pytest.approx(area, rel=0.25)


def test_mirrored_boxes_are_where_the_mirrored_picture_has_them(data):
    (plain, *_), (mirrored, *_) = (
        list(loader(data, flip=flip, short=(48,)).batches(0)) for flip in (0.0, 1.0)
    )
    assert torch.equal(plain.images.flip(3), mirrored.images)
    for a, b in zip(plain.boxes, mirrored.boxes, strict=True):
        for (x0, y0, x1, y1), found in zip(a.tolist(), b.tolist(), strict=True):
            assert found == [64 - x1, y0, 64 - x0, y1]


def test_each_picture_comes_once_an_epoch_at_drawn_sizes(data):
    batches = list(loader(data).batches(0))
    assert sorted(i for b in batches for i in b.index.tolist()) == list(range(6))
    assert {min(s) for b in batches for s in b.sizes} <= {24, 36, 48}
    assert len({min(s) for e in range(3) for b in loader(data).batches(e) for s in b.sizes}) == 3


def test_a_resumed_epoch_and_more_threads_give_the_same_batches(data):
    whole = list(loader(data).batches(3))
    rest = list(loader(data, threads=3).batches(3, 1))
    assert len(rest) == 2
    assert all(map(same, whole[1:], rest))


def test_two_ranks_share_the_batch_of_one(data):
    (one, *_) = loader(data).batches(0)
    for rank in (0, 1):
        (half, *_) = loader(data, rank=rank, world=2).batches(0)
        h, w = half.sizes[0]
        assert torch.equal(one.images[rank, :, :h, :w], half.images[0])


def test_test_pictures_come_in_order_and_unreadable_ones_are_told(data, tmp_path):
    (tmp_path / "images" / "val2017" / "1.png").write_bytes(b"no picture")
    source = open_annotated(data, split="test").pictures
    bad = {}
    framing = Framing(test_short=20, longest=1000)
    batches = list(
        whole_pictures(
            source,
            framing,
            PLAIN,
            batch_size=2,
            threads=1,
            device=torch.device("cpu"),
            bad=bad,
        )
    )
    assert [i for b in batches for i in b.index.tolist()] == [0, 2]
    assert batches[0].sizes == [(20, 25)] * 2
    assert batches[0].stored == [(40, 50)] * 2
    assert list(bad) == [1]


def test_crowds_are_not_trained_on(data):
    opened = open_annotated(data)
    opened.objects[0].crowd[0] = True
    framing = Framing(short=(48,), longest=64)
    batches = SceneLoader(opened, framing, PLAIN, masks=False, batch_size=6, seed=0).batches(0)
    batch = next(batches)
    batches.close()
    counts = {int(i): len(b) for i, b in zip(batch.index, batch.boxes, strict=True)}
    assert counts[0] == 1
    assert sum(counts.values()) == 11


def test_the_size_of_a_frame():
    assert framed_size(480, 640, 240, 1333) == (240, 320)
    assert framed_size(480, 640, 800, 1000) == (750, 1000)  # the long side is the limit
    assert framed_size(640, 480, 800, 1000) == (1000, 750)


def test_a_batch_larger_than_the_data_and_wrong_framing_are_refused(data):
    with pytest.raises(ValueError, match="batch_size=7"):
        loader(data, batch_size=7)
    with pytest.raises(ValueError, match="flip=2"):
        loader(data, flip=2.0)
    with pytest.raises(ValueError, match="framing"):
        loader(data, short=())


def test_pictures_held_in_memory_give_the_same_batches(data):
    held = in_memory_annotated(open_annotated(data), budget=1 << 24, threads=1)
    framing = Framing(short=(24,), longest=64)
    for a, b in zip(
        *(
            list(SceneLoader(d, framing, PLAIN, masks=False, batch_size=3, seed=0).batches(0))
            for d in (held, open_annotated(data))
        ),
        strict=True,
    ):
        assert same(a, b)
    np.testing.assert_array_equal(held.objects[2].boxes, open_annotated(data).objects[2].boxes)
