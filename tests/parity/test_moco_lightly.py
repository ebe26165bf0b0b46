"""MoCo's loss, queue and heads against lightly's."""

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from toys import CLOCK, ConvNet, Pixels, views

from saccade.methods.moco import MoCo
from saccade.methods.moco_v3 import MoCoV3
from saccade.nn.parts import Ema


def test_loss_gradient_and_queue_equal_lightlys_over_several_steps():
    torch.manual_seed(0)
    task = MoCo(MoCo.Config(hidden=0, dim=12, queue_size=16, temperature=0.2), Pixels())
    task.projector = torch.nn.Identity()
    task.key_projector = Ema(torch.nn.Identity())
    loss = NTXentLoss(0.2, memory_bank_size=(16, 12))
    x = torch.randn(4, 12)
    loss(x, x)  # the bank comes into being; x does not enter: it has no gradient
    loss.memory_bank.bank.copy_(task.queue.rows)
    for _ in range(6):
        q, k = torch.randn(2, 4, 3, 2, 2).unbind()
        q.requires_grad_()
        ours = task(views(q, k), CLOCK).loss
        theirs = loss(q.flatten(1), k.flatten(1))
        torch.testing.assert_close(ours, theirs)
        gradients = (torch.autograd.grad(x, q)[0] for x in (ours, theirs))
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
        task.enqueue()
        torch.testing.assert_close(task.queue.rows, loss.memory_bank.bank)


def test_head_of_v2_equals_lightlys():
    torch.manual_seed(0)
    ours = MoCo(MoCo.Config(hidden=8, dim=4, queue_size=8), ConvNet()).projector
    theirs = MoCoProjectionHead(16, 8, 4).layers
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_heads_of_v3_equal_lightlys_whose_last_norm_has_weights():
    torch.manual_seed(0)
    task = MoCoV3(MoCoV3.Config(hidden=8, dim=4), ConvNet())
    for ours, theirs in (
        (task.projector, MoCoProjectionHead(16, 8, 4, num_layers=3, batch_norm=True)),
        (task.predictor, MoCoProjectionHead(4, 8, 4, num_layers=2, batch_norm=True)),
    ):
        state = theirs.layers.state_dict()
        last = len(ours) - 1
        assert state.keys() - ours.state_dict().keys() == {f"{last}.weight", f"{last}.bias"}
        theirs.layers.load_state_dict({**state, **ours.state_dict()})
        x = torch.randn(10, ours[0].in_features)
        torch.testing.assert_close(ours(x), theirs(x))
