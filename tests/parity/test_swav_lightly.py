"""SwAV's codes, loss, gradient and head against lightly's."""

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightlys
from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes
from toys import ConvNet, Pixels, views

from saccade.core import Clock
from saccade.methods.swav import SwAV
from saccade.nn.functional import sinkhorn


@pytest.mark.parametrize(("epsilon", "steps"), [(0.05, 3), (0.03, 3), (0.5, 10)])
def test_codes_equal_lightlys(epsilon, steps):
    torch.manual_seed(0)
    scores = 2 * torch.rand(20, 6) - 1
    theirs = lightlys(scores, steps, epsilon)
    torch.testing.assert_close(sinkhorn(scores, epsilon, steps), theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("queue_size", [0, 8])
def test_loss_and_gradient_equal_lightlys_over_several_steps(queue_size):
    torch.manual_seed(0)
    cfg = SwAV.Config(dim=12, prototypes=5, queue_size=queue_size, queue_from_epoch=0)
    task = SwAV(cfg, Pixels())
    task.projector = torch.nn.Identity()
    prototypes = SwaVPrototypes(12, 5)
    (head,) = prototypes.heads
    head.weight.data.copy_(task.prototypes)
    head.bias.data.zero_()  # the official layer has none
    past = []
    for i in range(5):
        crops = [torch.randn(4, 3, 2, 2, requires_grad=True) for _ in range(5)]
        z = [F.normalize(x.flatten(1), dim=1) for x in crops]
        scores = [prototypes(x) for x in z]
        queue = None
        if queue_size and len(past) >= 2:  # full
            queue = [prototypes(torch.cat([x[v] for x in past[-2:]])) for v in (0, 1)]
        theirs = SwaVLoss()(scores[:2], scores[2:], queue)[0]
        ours = task(views(*crops), Clock(i, 5, 5)).loss
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        mine = torch.autograd.grad(ours, (*crops, task.prototypes))
        for x, y in zip(mine, torch.autograd.grad(theirs, (*crops, head.weight)), strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)
        past.append([x.detach() for x in z])


def test_head_equals_lightlys():
    torch.manual_seed(0)
    ours = SwAV(SwAV.Config(hidden=8, dim=4, prototypes=5), ConvNet()).projector
    theirs = SwaVProjectionHead(16, 8, 4).layers
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours(x), theirs(x))
