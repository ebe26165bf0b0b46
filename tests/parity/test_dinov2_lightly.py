"""KoLeo against lightly's, with its gradient."""

import torch
from lightly.loss import KoLeoLoss

from saccade.methods.dinov2 import koleo


def test_koleo_equals_lightlys():
    torch.manual_seed(0)
    x = torch.randn(2, 20, 7).unbind()
    ours, theirs = (v.clone().requires_grad_() for v in (x[0], x[0]))
    a, b = koleo(ours), KoLeoLoss()(theirs)
    torch.testing.assert_close(a, b)
    a.backward()
    b.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_equal_rows_cost_what_they_cost_lightly():
    x = torch.ones(3, 16)
    torch.testing.assert_close(koleo(x), KoLeoLoss()(x))
