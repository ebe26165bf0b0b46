"""Barlow Twins' loss, gradient and head against lightly's."""

import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from toys import CLOCK, ConvNet, Pixels, views

from saccade.methods.barlow_twins import BarlowTwins


@pytest.mark.parametrize("redundancy", [0.0051, 0.5])
def test_loss_and_gradient_equal_lightlys(redundancy):
    torch.manual_seed(0)
    a, b = (x.requires_grad_() for x in torch.randn(2, 6, 3, 2, 2).unbind())
    task = BarlowTwins(BarlowTwins.Config(hidden=4, dim=12, redundancy=redundancy), Pixels())
    task.projector = torch.nn.BatchNorm1d(12, affine=False)
    ours = task(views(a, b), CLOCK).loss
    theirs = BarlowTwinsLoss(redundancy)(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(ours, theirs)
    for x, y in zip(*(torch.autograd.grad(loss, (a, b)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_head_equals_lightlys_before_the_losss_own_norm():
    torch.manual_seed(0)
    ours = BarlowTwins(BarlowTwins.Config(hidden=8, dim=4), ConvNet()).projector[:-1]
    theirs = BarlowTwinsProjectionHead(16, 8, 4).layers
    theirs.load_state_dict(ours.state_dict() | {"6.bias": torch.zeros(4)})
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours(x), theirs(x))
