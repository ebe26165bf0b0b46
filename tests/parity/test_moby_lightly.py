"""One direction of MoBY against lightly's NT-Xent with a bank of keys."""

import torch
from lightly.loss import NTXentLoss
from toys import ConvNet

from saccade.methods.moby import MoBY


def test_each_direction_equals_lightlys_with_the_same_queue():
    torch.manual_seed(0)
    task = MoBY(MoBY.Config(hidden=8, dim=12, queue_size=16), ConvNet())
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(16, 12))
    theirs(torch.randn(4, 12), torch.randn(4, 12))  # the bank comes into being
    for queue in (task.queue_a, task.queue_b):
        theirs.memory_bank.bank.copy_(queue.rows)
        q, k = (torch.nn.functional.normalize(torch.randn(4, 12), dim=-1) for _ in range(2))
        loss, _ = task.contrast(q, k, queue)
        torch.testing.assert_close(loss, theirs(q, k))
