"""SimCLR v2's head and loss against lightly's."""

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from toys import CLOCK, ConvNet, Pixels, views

from saccade.methods.simclr_v2 import SimCLRv2


def test_head_equals_lightlys_of_three_layers():
    torch.manual_seed(0)
    ours = SimCLRv2(SimCLRv2.Config(dim=8), ConvNet()).projector
    theirs = SimCLRProjectionHead(16, 16, 8, num_layers=3).layers
    state = ours.state_dict()
    biases = {k: v for k, v in theirs.state_dict().items() if k not in state}
    assert list(biases) == ["7.bias"]  # of the last norm, which has none in the paper
    theirs.load_state_dict({**state, **biases})
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_loss_and_gradient_equal_lightlys():
    torch.manual_seed(0)
    task = SimCLRv2(SimCLRv2.Config(temperature=0.5), Pixels())
    task.projector = torch.nn.Identity()
    a, b = torch.randn(2, 6, 3, 2, 2).unbind()
    a.requires_grad_()
    losses = task(views(a, b), CLOCK).loss, NTXentLoss(0.5)(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(x, a)[0] for x in losses))
