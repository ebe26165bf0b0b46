"""SimCLR's loss and its gradient against lightly's."""

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from toys import CLOCK, ConvNet, Pixels, views

from saccade.methods.simclr import SimCLR


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_equal_lightlys(temperature):
    torch.manual_seed(0)
    a, b = (x.requires_grad_() for x in torch.randn(2, 6, 3, 2, 2).unbind())
    task = SimCLR(SimCLR.Config(hidden=4, dim=12, temperature=temperature), Pixels())
    task.projector = torch.nn.Identity()
    ours = task(views(a, b), CLOCK).loss
    theirs = NTXentLoss(temperature)(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(ours, theirs)
    for x, y in zip(*(torch.autograd.grad(loss, (a, b)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def test_head_equals_lightlys_whose_last_shift_starts_at_zero():
    torch.manual_seed(0)
    ours = SimCLR(SimCLR.Config(hidden=8, dim=4), ConvNet()).projector
    theirs = SimCLRProjectionHead(16, 8, 4).layers
    state = ours.state_dict() | {"4.bias": torch.zeros(4)}
    theirs.load_state_dict(state)
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(F.normalize(ours.eval()(x)), F.normalize(theirs.eval()(x)))
