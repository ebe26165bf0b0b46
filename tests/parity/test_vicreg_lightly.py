"""VICReg's loss, gradient and head against lightly's."""

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from toys import CLOCK, ConvNet, Pixels, views

from saccade.methods.vicreg import VICReg


def test_loss_and_gradient_equal_lightlys():
    torch.manual_seed(0)
    a, b = ((0.9 * x).requires_grad_() for x in torch.randn(2, 6, 3, 2, 2).unbind())
    task = VICReg(VICReg.Config(hidden=4, dim=12), Pixels())
    task.projector = torch.nn.Identity()
    ours = task(views(a, b), CLOCK).loss
    theirs = VICRegLoss()(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(ours, theirs)
    for x, y in zip(*(torch.autograd.grad(loss, (a, b)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_head_equals_lightlys_whose_last_bias_is_zero():
    torch.manual_seed(0)
    ours = VICReg(VICReg.Config(hidden=8, dim=4), ConvNet()).projector
    theirs = VICRegProjectionHead(16, 8, 4).layers
    theirs.load_state_dict(ours.state_dict() | {"6.bias": torch.zeros(4)})
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours(x), theirs(x))
