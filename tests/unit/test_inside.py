"""What a trained system attends to behind its encoder, beside the parts themselves."""

import boxes
import masks
import pytest
import torch

from saccade import backbones, inside
from saccade.recipe import BackboneConfig
from saccade.systems.detect import Detect, Head
from saccade.systems.segment import Segment

POINT, SIZE = (0.3, 0.6), (64, 64)  # of the canvas that pictures of 48 x 64 are filled up to


def encoder():
    torch.manual_seed(0)
    return backbones.create(BackboneConfig(name="resnet10_w16", image_size=64, stem="paper"))


@pytest.fixture(scope="module")
def detector():
    cfg = Detect.Config(
        classes=boxes.CLASSES,
        neck="fpt",
        head=Head(relation=True, roi="lrf", dedup="learned"),
        width=8,
        hidden=16,
        anchors=(4, 8, 16, 32, 64),
        before_nms=(30, 30),
        after_nms=(12, 12),
    )
    return Detect(cfg, encoder()).eval()


def around(box, point):
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def test_every_layer_of_a_detector_answers_for_the_point(detector):
    batch, given = boxes.scenes(1), {}
    for name, module in inside.layers(detector).items():
        module.register_forward_hook(
            lambda m, args, made, n=name: given.setdefault(n, []).append((m, args))
        )
    found = inside.seen(detector, batch, POINT, SIZE)
    names = list(inside.layers(detector))
    assert {f.layer for f in found} == set(names)
    assert [n for n in names if "fpt" not in n] == [
        "roi_heads.box_roi_pool.learned",
        *("roi_heads.box_head.relations.0", "roi_heads.box_head.relations.1", "removal.relation"),
    ]
    for one in found:
        (module, args), *_ = given[one.layer]
        if "fpt" in one.layer:
            x, other = args
            row = int(0.6 * x.shape[2]) * x.shape[3] + int(0.3 * x.shape[3])
            want = module.attention(x, other)[0, row].unflatten(0, other.shape[2:])
            torch.testing.assert_close(one.maps[0], want)
            assert around(one.asker, POINT)
        if "learned" in one.layer:
            assert one.maps.sum().item() == pytest.approx(1)


def test_a_region_is_asked_that_is_the_smallest_around_the_point():
    given = torch.tensor([[0.0, 0, 50, 50], [10, 10, 30, 40], [12, 0, 14, 9], [40, 40, 60, 60]])
    assert inside.nearest(given, (20.0, 20.0)) == (1, 600.0)
    assert inside.nearest(given, (45.0, 45.0)) == (3, 400.0)
    assert inside.nearest(given, (70.0, 70.0))[0] == 3  # none is around it


def test_places_have_the_weights_of_the_regions_that_cover_them():
    given = torch.tensor([[0.0, 0, 9, 5], [4, 1, 13, 11]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    maps = inside.covered(given, weights, (12, 16))
    assert maps.shape == (2, 3, 4)
    for k in range(2):
        for i, y in enumerate((2, 6, 10)):
            for j, x in enumerate((2, 6, 10, 14)):
                covers = [b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in given.tolist()]
                want = sum(w for w, c in zip(weights[k].tolist(), covers, strict=True) if c)
                assert maps[k, i, j].item() == pytest.approx(want)


def test_the_row_of_a_relation_is_that_of_the_region_asked(detector):
    seen = {}
    relation = detector.roi_heads.box_head.relations[0]
    with relation.register_forward_hook(lambda m, args, made: seen.update(args=args)):
        found = inside.seen(detector, boxes.scenes(1), POINT, SIZE)
    x, regions, keys = seen["args"]
    one = next(f for f in found if f.layer.endswith("relations.0"))
    row, _ = inside.nearest(regions, (POINT[0] * 64, POINT[1] * 64))
    weights = relation.attention(x, regions, keys)[:, row]  # [heads, M]
    torch.testing.assert_close(one.maps, inside.covered(regions, weights, SIZE))
    assert one.asker == pytest.approx([side / 64 for side in regions[row].tolist()])


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"context": "disentangled"}, ["pairwise", "unary"]),
        ({"head": "fpt"}, ["attention"] * 10),
    ],
)
def test_heads_of_segmenters_answer_too(settings, parts):
    cfg = Segment.Config(classes=masks.CLASSES, width=8, **settings)
    system = Segment(cfg, encoder()).eval()
    found = inside.seen(system, masks.segments(1, size=(64, 64)), POINT, (64, 64))
    assert [f.part for f in found] == parts
    for one in found:
        assert one.maps.sum((1, 2)).tolist() == pytest.approx([1.0] * len(one.maps), abs=1e-5)
        assert around(one.asker, POINT)


def test_systems_without_attention_have_nothing_inside():
    assert inside.layers(Segment(Segment.Config(classes=masks.CLASSES, width=8), encoder())) == {}
