"""NNCLR's neighbors, queue and heads against lightly's."""

import torch
import torch.nn.functional as F
from lightly.models.modules import NNMemoryBankModule
from lightly.models.modules.heads import NNCLRPredictionHead, NNCLRProjectionHead
from toys import CLOCK, ConvNet, Pixels, views

from saccade.methods.nnclr import NNCLR


def test_neighbors_and_queue_equal_lightlys_over_several_steps():
    torch.manual_seed(0)
    cfg = NNCLR.Config(hidden=4, dim=12, predictor_hidden=4, queue_size=16)
    task = NNCLR(cfg, Pixels())
    task.projector = task.predictor = torch.nn.Identity()
    bank = NNMemoryBankModule(size=(16, 12))
    bank(torch.randn(4, 12))  # the bank comes into being
    bank.bank.copy_(task.queue.rows)
    for _ in range(6):
        a, b = torch.randn(2, 4, 3, 2, 2).unbind()
        z = [F.normalize(x.flatten(1), dim=1) for x in (b, a)]
        for x, update in zip(z, (False, True), strict=True):
            torch.testing.assert_close(task.nearest(x), bank(x, update=update))
        task(views(a, b), CLOCK)
        torch.testing.assert_close(task.queue.rows, bank.bank)


def test_heads_equal_lightlys_whose_last_shift_starts_at_zero():
    torch.manual_seed(0)
    ours = NNCLR(NNCLR.Config(hidden=8, dim=4, predictor_hidden=6, queue_size=8), ConvNet())
    projector = NNCLRProjectionHead(16, 8, 4).layers
    projector.load_state_dict(ours.projector.state_dict() | {"7.bias": torch.zeros(4)})
    predictor = NNCLRPredictionHead(4, 6, 4).layers
    predictor.load_state_dict(ours.predictor.state_dict())
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours.projector(x), projector(x))
    torch.testing.assert_close(ours.predictor(ours.projector(x)), predictor(projector(x)))
