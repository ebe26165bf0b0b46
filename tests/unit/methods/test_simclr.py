import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, noise, views

from saccade.core import View
from saccade.methods.simclr import SimCLR


def simclr(temperature=0.5, dim=12):
    task = SimCLR(SimCLR.Config(hidden=4, dim=dim, temperature=temperature), Pixels(dim))
    task.projector = nn.Identity()
    return task


def pictures(rows):
    """Vectors as pictures of one row, for `Pixels`."""
    return rows[:, :, None, None]


def test_equals_the_equation_written_as_loops():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 2, 2).unbind()
    z = F.normalize(torch.cat([a, b]).flatten(1), dim=-1)
    total = 0.0
    for i in range(10):
        s = [math.exp(float(z[i] @ z[k]) / 0.5) for k in range(10)]
        total += -math.log(s[(i + 5) % 10] / (sum(s) - s[i]))
    assert simclr()(views(a, b), CLOCK).loss.item() == pytest.approx(total / 10, rel=1e-5)


def test_identical_pictures_give_the_log_of_the_number_of_candidates():
    x = torch.ones(4, 3, 2, 2)
    assert simclr()(views(x, x), CLOCK).loss.item() == pytest.approx(math.log(7), rel=1e-6)


def test_orthonormal_pairs_give_the_closed_form():
    x = pictures(torch.eye(4))
    step = simclr(temperature=0.5, dim=4)(views(x, x), CLOCK)
    assert step.loss.item() == pytest.approx(math.log(1 + 6 * math.exp(-2)), rel=1e-5)
    assert step.logs["accuracy"] == 1
    assert step.logs["positive"].item() == pytest.approx(1)


def test_a_single_picture_has_no_negatives_and_loss_zero():
    a, b = torch.randn(2, 1, 3, 2, 2).unbind()
    assert simclr()(views(a, b), CLOCK).loss.item() == 0


def test_a_picture_twice_in_the_batch_leaves_a_floor_of_log_two():
    x = pictures(torch.eye(4)[[0, 0]])
    loss = simclr(temperature=0.05, dim=4)(views(x, x), CLOCK).loss
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)  # the positive and two like it


def test_swapping_views_permuting_pictures_and_scaling_change_nothing():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 2, 2).unbind()
    want = simclr()(views(a, b), CLOCK).loss
    order = torch.randperm(5)
    for x, y in ((b, a), (a[order], b[order]), (3 * a, 0.1 * b)):
        torch.testing.assert_close(simclr()(views(x, y), CLOCK).loss, want)


def test_gradient_of_a_picture_sums_its_roles_as_anchor_positive_and_negative():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 2, dtype=torch.double)

    def loss(a):
        return simclr()(views(a.float(), x.float() + 1), CLOCK).loss

    a = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(a), a)
    bump = torch.zeros_like(x)
    bump[2, 1, 0, 0] = 1e-2
    slope = (loss(x + bump) - loss(x - bump)) / 2e-2
    assert grad[2, 1, 0, 0].item() == pytest.approx(slope.item(), rel=1e-2)


def test_head_starts_as_the_official_one():
    torch.manual_seed(0)
    task = SimCLR(SimCLR.Config(hidden=64, dim=32), ConvNet())
    kinds = [type(m) for m in task.projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert task.projector[3].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert "projector.4.bias" not in dict(task.named_parameters())


def test_both_views_share_one_pass_and_features_are_those_of_the_first():
    task = SimCLR(SimCLR.Config(hidden=4, dim=4), ConvNet())
    seen = []
    task.encoder.register_forward_hook(lambda _, inputs, out: seen.append(out))
    step = task(noise(b=4), CLOCK)
    assert [len(x) for x in seen] == [8]
    assert torch.equal(step.features, seen[0][:4])
    assert not step.features.requires_grad


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: SimCLR compares 2 views, not 3"):
        SimCLR(SimCLR.Config(views=(View(count=3),)), ConvNet())
