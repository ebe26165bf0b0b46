"""Heads whose regions see each other, beside torchvision's own pass of the same parts."""

from collections import OrderedDict

import pytest
import torch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image

from saccade.attention import DuplicateRemoval, LearnedRegionFeatures
from saccade.detector import regions
from saccade.detector.regions import RoIPool

SIZES = [(64, 64), (48, 60)]


def make(masks=False, learned=None):
    torch.manual_seed(0)
    more = {}
    if masks:
        more = {
            "mask_roi_pool": RoIPool(14, (4, 8)),
            "mask_head": MaskRCNNHeads(4, [4], 1),
            "mask_predictor": MaskRCNNPredictor(4, 4, 3),
        }
    return RoIHeads(
        RoIPool(7, (4, 8), learned),
        TwoMLPHead(4 * 49, 16),
        FastRCNNPredictor(16, 3),
        *(0.5, 0.5, 16, 0.25, None, 0.05, 0.5, 20),
        **more,
    )


def given(masks=False):
    """Maps, proposals and targets of two pictures."""
    g = torch.Generator().manual_seed(1)
    maps = OrderedDict((str(i), torch.randn(2, 4, 16 >> i, 16 >> i, generator=g)) for i in (0, 1))
    corners = torch.rand(2, 12, 2, generator=g) * 30
    proposals = list(torch.cat([corners, corners + 5 + torch.rand(2, 12, 2, generator=g) * 25], 2))
    targets = []
    for boxes in proposals:
        one = {"boxes": boxes[:2] + 1, "labels": torch.tensor([1, 2])}
        targets.append(one | ({"masks": torch.ones(2, 64, 64)} if masks else {}))
    return maps, proposals, targets


@pytest.mark.parametrize("masks", [False, True])
def test_losses_without_a_removal_are_torchvisions(masks):
    heads = make(masks).train()
    torch.manual_seed(2)
    maps, proposals, targets = given(masks)
    mine = regions.losses(heads, None, maps, proposals, SIZES, targets)
    torch.manual_seed(2)
    maps, proposals, targets = given(masks)
    _, theirs = heads(maps, proposals, SIZES, targets)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], v) for k, v in theirs.items())


@pytest.mark.parametrize("masks", [False, True])
def test_detections_without_a_removal_are_torchvisions(masks):
    heads = make(masks).eval()
    maps, proposals, _ = given()
    mine = regions.detections(heads, None, maps, list(proposals), SIZES)
    theirs, _ = heads(maps, proposals, SIZES)
    for a, b in zip(mine, theirs, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], v) for k, v in b.items())
        assert len(a["boxes"])


def test_true_boxes_are_told_from_proposals():
    boxes = torch.tensor([[1.0, 2, 3, 4], [0, 0, 9, 9], [1, 2, 3, 5]])
    assert regions.proposed(boxes, torch.tensor([[0.0, 0, 9, 9]])).tolist() == [True, False, True]
    assert regions.proposed(boxes, torch.zeros(0, 4)).all()


def test_true_boxes_do_not_learn_to_be_kept():
    heads, removal = make().train(), DuplicateRemoval(16)
    seen = []
    removal.register_forward_pre_hook(lambda module, args: seen.append(args))
    maps, proposals, targets = given()
    regions.losses(heads, removal, maps, list(proposals), SIZES, targets)
    for scores, x, boxes in seen:
        assert len(scores) == len(x) == len(boxes)
    picked = [len(scores) for scores, _, _ in seen]
    torch.manual_seed(3)
    chosen, *_ = heads.select_training_samples(list(proposals), targets)
    most = [len(b) for b in chosen]
    assert all(n <= m - 2 for n, m in zip(picked, most, strict=True))  # two true ones each


def test_learned_detections_equal_loops():
    """Scores of the classes that pass the threshold, times s1, the best ones first."""
    heads, removal = make().eval(), DuplicateRemoval(16)
    torch.nn.init.normal_(removal.out.weight)
    heads.score_thresh, heads.detections_per_img = 0.4, 9
    maps, proposals, _ = given()
    mine = regions.detections(heads, removal, maps, list(proposals), SIZES)
    x = heads.box_head(heads.box_roi_pool(maps, proposals, SIZES))
    logits, moves = heads.box_predictor(x)
    moved = heads.box_coder.decode(moves, proposals)
    for i, found in enumerate(mine):
        rows = slice(12 * i, 12 * i + 12)
        scores = logits[rows].softmax(1)[:, 1:]
        boxes = clip_boxes_to_image(moved[rows, 1:], SIZES[i])
        ranked = removal(scores, x[rows], boxes)
        want = []
        for c in range(2):
            if scores[:, c].max() < 0.4:
                continue
            for n, row in enumerate(ranked.rows[c].tolist()):
                final = float(scores[row, c] * ranked.kept[c, n].mean())
                want.append((final, c + 1, boxes[row, c].tolist()))
        want = sorted(want, key=lambda w: -w[0])[:9]
        assert found["scores"].tolist() == pytest.approx([w[0] for w in want])
        assert found["labels"].tolist() == [w[1] for w in want]
        for box, (_, _, theirs) in zip(found["boxes"].tolist(), want, strict=True):
            assert box == pytest.approx(theirs)


def test_a_picture_whose_classes_all_fail_has_no_detections():
    heads, removal = make(masks=True).eval(), DuplicateRemoval(16)
    heads.score_thresh = 0.99
    maps, proposals, _ = given()
    for found in regions.detections(heads, removal, maps, proposals, SIZES):
        assert found["boxes"].shape == (0, 4)
        assert found["masks"].shape[0] == 0


def test_a_picture_without_objects_trains_the_removal_to_keep_none():
    heads, removal = make().train(), DuplicateRemoval(16)
    maps, proposals, targets = given()
    for target in targets:
        target |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    found = regions.losses(heads, removal, maps, proposals, SIZES, targets)
    found["loss_duplicates"].backward()
    assert removal.out.bias.grad.min() > 0


def test_learned_features_come_from_the_level_that_fits_and_the_true_size():
    torch.manual_seed(0)
    learned = LearnedRegionFeatures(4, 7, embedding=4, width=4)
    pool = RoIPool(7, (4, 8, 16, 32), learned)
    maps = OrderedDict((str(i), torch.randn(1, 4, 64 >> i, 64 >> i)) for i in range(4))
    boxes = torch.tensor([[3.0, 5, 40, 60], [0, 0, 250, 250]])  # levels 0 and 2
    y = pool(maps, [boxes], [(256, 200)])
    sizes = torch.tensor([[256, 200]])
    for row, level in enumerate((0, 2)):
        region = torch.cat([torch.zeros(1, 1), boxes[row : row + 1]], 1)
        want = learned(maps[str(level)], region, 4 << level, sizes)
        assert torch.equal(y[row : row + 1], want)
