"""Learned duplicate removal against its equations."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from saccade.attention import DuplicateRemoval
from saccade.attention.duplicate_removal import ranks

D, CLASSES = 6, 3


def make(first=100, std=0.2):
    torch.manual_seed(0)
    made = DuplicateRemoval(D, first=first, channels=16)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=std)
    return made.double()


def detected(n=7, seed=1):
    """Scores, features and boxes of a picture."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, CLASSES + 1, generator=g, dtype=torch.double).softmax(1)[:, 1:]
    x = torch.randn(n, D, generator=g, dtype=torch.double)
    corner = torch.rand(n, CLASSES, 2, generator=g, dtype=torch.double) * 20
    size = 10 + torch.rand(n, CLASSES, 2, generator=g, dtype=torch.double) * 20
    return scores, x, torch.cat([corner, corner + size], 2)


def test_it_equals_the_equations_written_class_by_class():
    made = make(first=5)
    scores, x, boxes = detected()
    ranked = made(scores, x, boxes)
    for c in range(CLASSES):
        order = sorted(range(7), key=lambda i: -float(scores[i, c]))[:5]
        assert ranked.rows[c].tolist() == order
        assert ranked.first[c].tolist() == [float(scores[i, c]) for i in order]
        f = []
        for rank, i in enumerate(order):
            angles = [rank / 1000 ** (j / 512) for j in range(512)]
            e = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
            f.append(made.rank(e.double()) + made.feature(x[i]))
        mine = boxes[order, c]
        assert torch.equal(ranked.boxes[c], mine)
        y = made.relation(torch.stack(f), mine, torch.ones(5, dtype=torch.bool)).clamp(min=0)
        torch.testing.assert_close(ranked.kept[c], 1 / (1 + (-made.out(y)).exp()))
    assert torch.equal(ranked.scores, ranked.first[..., None] * ranked.kept)


def test_ranks_start_from_zero_and_one_turn_takes_a_thousand_times_as_long_at_the_end():
    e = ranks(torch.arange(3.0))
    assert torch.equal(e[0], torch.cat([torch.zeros(512), torch.ones(512)]))
    assert e[2, 0] == pytest.approx(math.sin(2))
    assert e[2, 511] == pytest.approx(math.sin(2 / 1000 ** (511 / 512)))


def test_scores_only_fall_and_start_at_a_twentieth():
    torch.manual_seed(0)
    ranked = DuplicateRemoval(D)(*(t.float() for t in detected()))
    assert (ranked.scores < ranked.first[..., None]).all()
    torch.testing.assert_close(ranked.kept, torch.full_like(ranked.kept, 0.047), atol=2e-3, rtol=0)


def test_where_all_are_kept_the_order_is_that_of_the_scores():
    made = make()
    torch.nn.init.zeros_(made.out.weight)
    torch.nn.init.constant_(made.out.bias, 50.0)
    ranked = made(*detected())
    assert (ranked.scores.mean(2).diff(dim=1) <= 0).all()
    torch.testing.assert_close(ranked.scores.mean(2), ranked.first)


def test_equal_scores_stay_in_the_order_given():
    scores, x, boxes = detected()
    assert make()(torch.full_like(scores, 0.2), x, boxes).rows.tolist() == [list(range(7))] * 3


def by_loops(made, boxes, given, labels):
    """Targets of ranked boxes [C, N, 4], detection by detection."""
    targets = torch.zeros(*boxes.shape[:2], len(made.thresholds))
    for c, mine in enumerate(boxes):
        overlaps = box_iou(mine, given).tolist()
        for t, threshold in enumerate(made.thresholds):
            taken = set()
            for n, overlap in enumerate(overlaps):  # best first
                best, nearest = -1.0, None
                for g, label in enumerate(labels):
                    if label == c and overlap[g] > best:
                        best, nearest = overlap[g], g
                if best > threshold and nearest not in taken:
                    taken.add(nearest)
                    targets[c, n, t] = 1
    return targets


def truth(ranked, seed=2):
    """Objects near some detections: boxes, classes, overlaps."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 2, 2])
    given = ranked.boxes[labels, torch.tensor([1, 3, 0, 2])]
    given = given + torch.randn(given.shape, generator=g, dtype=torch.double) * 1.5
    overlap = box_iou(ranked.boxes.flatten(0, 1), given).unflatten(0, ranked.rows.shape)
    return given, labels, overlap, torch.arange(CLASSES)[:, None] == labels


@pytest.mark.parametrize("seed", range(5))
def test_targets_equal_loops(seed):
    made = make()
    ranked = made(*detected(40, seed))
    given, labels, overlap, own = truth(ranked, seed)
    targets = made.targets(overlap, own)
    want = by_loops(made, ranked.boxes, given, labels.tolist())
    assert torch.equal(targets.float(), want)
    assert 0 < want.sum() < want.numel()


def test_each_object_has_one_detection_at_most_and_less_at_higher_thresholds():
    made = make()
    ranked = made(*detected(40))
    _, labels, overlap, own = truth(ranked)
    found = made.targets(overlap, own).sum(1)  # [C, T]
    most = torch.stack([(labels == c).sum() for c in range(CLASSES)])
    assert (found <= most[:, None]).all()
    assert (found.diff(dim=1) <= 0).all()


def test_of_identical_boxes_the_better_scored_one_is_kept():
    made = make()
    box = torch.tensor([[[0.0, 0, 10, 10]] * CLASSES] * 3).double()
    scores = torch.tensor([[0.2], [0.6], [0.6]]).double().expand(3, CLASSES)
    ranked = made(scores, torch.zeros(3, D).double(), box)
    assert ranked.rows[0].tolist() == [1, 2, 0]  # ties: the first given
    own = torch.tensor([[True], [False], [False]])
    targets = made.targets(torch.ones(CLASSES, 3, 1).double(), own)
    assert targets[0].tolist() == [[1] * 5, [0] * 5, [0] * 5]
    assert not targets[1:].any()


def test_a_picture_without_objects_or_detections_has_no_targets():
    made = make()
    assert made.targets(torch.zeros(3, 4, 0), torch.zeros(3, 0, dtype=torch.bool)).sum() == 0
    ranked = made(*(t[:0] for t in detected()))
    targets = made.targets(torch.zeros(3, 0, 2).double(), torch.ones(3, 2, dtype=torch.bool))
    assert made.loss(ranked, targets).item() == 0


def test_the_loss_equals_loops_over_the_product_of_scores():
    made = make()
    ranked = made(*detected())
    targets = (torch.rand(ranked.scores.shape) < 0.3).double()
    total = 0.0
    for s, t in zip(ranked.scores.flatten().tolist(), targets.flatten().tolist(), strict=True):
        total -= 4 * t * math.log(s + 1e-8) + (1 - t) * math.log(1 - s + 1e-8)
    assert made.loss(ranked, targets).item() == pytest.approx(total / (7 * 5))


def test_certain_scores_give_a_finite_loss():
    made = make()
    ranked = made(*detected())._replace(first=torch.ones(3, 7), kept=torch.ones(3, 7, 5))
    assert made.loss(ranked, torch.zeros(3, 7, 5)).isfinite()


def test_scores_and_features_learn_and_boxes_do_not():
    scores, x, boxes = (t.requires_grad_() for t in detected())
    made = make()
    ranked = made(scores, x, boxes)
    made.loss(ranked, torch.zeros_like(ranked.scores)).backward()
    assert scores.grad.abs().min() > 0
    assert x.grad.abs().max() > 0
    assert boxes.grad is None


def test_gradients_are_those_of_differences():
    made = make(first=3)
    scores, x, boxes = detected(3)

    def run(scores, x, *_):
        ranked = made(scores, x, boxes)
        return made.loss(ranked, (ranked.rows % 2 == 0)[..., None].expand(-1, -1, 5).double())

    inputs = (scores.requires_grad_(), x.requires_grad_(), made.out.bias, made.rank.bias)
    assert torch.autograd.gradcheck(run, inputs)
