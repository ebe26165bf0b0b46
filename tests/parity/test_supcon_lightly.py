"""SupCon of images that are all classes of their own against lightly's NT-Xent."""

import dataclasses

import pytest
import torch
from lightly.loss import NTXentLoss
from toys import CLOCK, Pixels, views

from saccade.methods.supcon import SupCon


@pytest.mark.parametrize("labels", [list(range(6)), [-1] * 6])
def test_loss_and_gradient_equal_lightlys(labels):
    torch.manual_seed(0)
    a, b = (x.requires_grad_() for x in torch.randn(2, 6, 3, 2, 2).unbind())
    task = SupCon(SupCon.Config(hidden=4, dim=12, temperature=0.5), Pixels())
    task.projector = torch.nn.Identity()
    ours = task(dataclasses.replace(views(a, b), labels=torch.tensor(labels)), CLOCK).loss
    theirs = NTXentLoss(0.5)(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(ours, theirs)
    for x, y in zip(*(torch.autograd.grad(loss, (a, b)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)
