import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss.cross_entropy import SoftTargetCrossEntropy

from saccade.nn import mixing


def pictures(b=6, size=16):
    torch.manual_seed(0)
    return torch.rand(b, 3, size, size), torch.arange(b) % 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_are_timms_and_a_missing_one_gives_nothing(smoothing):
    y = torch.tensor([0, 2, 1, -1])
    want = mixup_target(y[:3], 3, lam=1.0, smoothing=smoothing)
    found = mixing.soft(y, 3, smoothing)
    torch.testing.assert_close(found[:3], want)
    assert found[3].tolist() == [0, 0, 0]


def test_loss_is_timms_and_with_hard_labels_torchs():
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4), torch.rand(5, 4).softmax(1)
    torch.testing.assert_close(
        mixing.soft_cross_entropy(logits, target), SoftTargetCrossEntropy()(logits, target)
    )
    y = torch.tensor([0, 3, 1, 1, 2])
    hard = mixing.soft_cross_entropy(logits, mixing.soft(y, 4))
    torch.testing.assert_close(hard, F.cross_entropy(logits, y))
    smooth = mixing.soft_cross_entropy(logits, mixing.soft(y, 4, 0.2))
    torch.testing.assert_close(smooth, F.cross_entropy(logits, y, label_smoothing=0.2))


def test_nothing_asked_for_changes_nothing():
    x, y = pictures()
    target = mixing.soft(y, 3)
    same, also = mixing.mixed(x, target, 0.0, 0.0)
    assert same is x
    assert also is target
    assert mixing.erased(x, 0.0) is x


def test_mixup_gives_pictures_and_labels_the_same_share_of_the_reversed_batch():
    x, y = pictures()
    target = mixing.soft(y, 3)
    torch.manual_seed(3)
    mixed, labels = mixing.mixed(x, target, 0.8, 0.0)
    share = float(((mixed - x.flip(0)) / (x - x.flip(0))).median())
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0), atol=1e-5, rtol=1e-4)
    want = mixup_target(y, 3, lam=share)
    torch.testing.assert_close(labels, want, atol=1e-5, rtol=1e-4)


def test_cutmix_cuts_one_rectangle_and_labels_by_its_area():
    x, y = pictures()
    for seed in range(8):
        torch.manual_seed(seed)
        mixed, labels = mixing.mixed(x, mixing.soft(y, 3), 0.0, 1.0)
        other = (mixed != x).any(1)  # [B, h, w]
        assert torch.equal(other, other[:1].expand_as(other))
        rows, columns = other[0].any(1), other[0].any(0)
        assert torch.equal(other[0], rows[:, None] & columns)
        assert torch.equal(mixed[:, :, other[0]], x.flip(0)[:, :, other[0]])
        want = mixup_target(y, 3, lam=1 - float(other[0].float().mean()))
        torch.testing.assert_close(labels, want)


def test_a_coin_chooses_between_the_two():
    x, y = pictures()
    kinds = []
    for seed in range(40):
        torch.manual_seed(seed)
        mixed, _ = mixing.mixed(x, mixing.soft(y, 3), 0.8, 1.0)
        kinds.append(bool((mixed[0] == x[0]).any()))  # cut: pixels outside stay
    assert 8 < sum(kinds) < 32


def test_shares_follow_beta():
    x = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])
    torch.manual_seed(0)
    shares = [float(mixing.mixed(x, torch.eye(2), 0.8, 0.0)[0][1, 0, 0, 0]) for _ in range(400)]
    beta = torch.distributions.Beta(0.8, 0.8)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(float(beta.variance), abs=0.015)


def test_some_pictures_are_erased_within_the_published_areas():
    x = torch.zeros(300, 3, 24, 24)
    torch.manual_seed(0)
    changed = (mixing.erased(x, 0.25) != 0).any(1)
    areas = changed.flatten(1).float().mean(1)
    assert float((areas > 0).float().mean()) == pytest.approx(0.25, abs=0.08)
    assert areas[areas > 0].min() > 0.01
    assert areas.max() < 0.4
    assert (x == 0).all()
