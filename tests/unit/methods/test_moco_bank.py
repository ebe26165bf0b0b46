import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, views

from saccade.core import View
from saccade.methods.moco_bank import MoCoBank
from saccade.nn.random import integers


def moco_bank(images=9, negatives=20, temperature=0.2, dim=12, **settings):
    torch.manual_seed(0)
    cfg = MoCoBank.Config(
        images=images, dim=dim, negatives=negatives, temperature=temperature, **settings
    )
    task = MoCoBank(cfg, Pixels(dim))
    task.projector = nn.Identity()
    return task


def test_equals_the_equation_written_as_loops():
    task, x = moco_bank(), torch.randn(4, 3, 2, 2)
    batch = views(x)
    q, rows = F.normalize(x.flatten(1), dim=1), task.bank.rows
    drawn = integers(batch.key[:1], 20, 9, "negatives")[0].tolist()
    assert set(drawn) & {0, 1, 2, 3}  # or the test would not see that the own row is left out
    total = 0.0
    for i in range(4):
        up = math.exp(float(q[i] @ rows[i]) / 0.2)
        down = up + sum(math.exp(float(q[i] @ rows[j]) / 0.2) for j in drawn if j != i)
        total -= math.log(up / down) / 4
    assert task(batch, CLOCK).loss.item() == pytest.approx(total, rel=1e-5)


def test_many_draws_tend_to_the_softmax_over_the_whole_bank():
    task, x = moco_bank(images=6, negatives=200_000), torch.randn(4, 3, 2, 2)
    q, rows = F.normalize(x.flatten(1), dim=1), F.normalize(task.bank.rows, dim=1)
    task.bank.rows.copy_(rows)
    e = (q @ rows.T / 0.2).exp()
    others = e.sum(1) - e.diagonal()
    wanted = (1 + 200_000 / 6 * others / e.diagonal()).log().mean()
    assert task(views(x), CLOCK).loss.item() == pytest.approx(wanted.item(), rel=1e-3)


def test_equal_rows_give_the_log_of_draws_and_positive():
    task = moco_bank(images=100_000, negatives=64, dim=4)
    task.bank.rows[:] = torch.tensor([1.0, 0, 0, 0])
    x = torch.tensor([1.0, 0, 0, 0]).expand(3, 4)[:, :, None, None]
    assert task(views(x), CLOCK).loss.item() == pytest.approx(math.log(65), rel=1e-6)


def test_gradient_reaches_the_query_only():
    task = moco_bank()
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    task(views(x), CLOCK).loss.backward()
    assert x.grad.abs().sum() > 0
    assert not task.bank.rows.requires_grad


def test_rows_move_once_the_step_is_over_by_the_features_before_it():
    task, x = moco_bank(momentum=0.5), torch.randn(4, 3, 2, 2)
    before = task.bank.rows.clone()
    task(views(x), CLOCK)
    assert torch.equal(task.bank.rows, before)
    task.after_update(CLOCK)
    q = F.normalize(x.flatten(1), dim=1)
    torch.testing.assert_close(task.bank.rows[:4], F.normalize(0.5 * before[:4] + 0.5 * q, dim=1))
    assert torch.equal(task.bank.rows[4:], before[4:])


def test_images_and_rows_permuted_together_change_nothing():
    task, x = moco_bank(images=4, negatives=100_000), torch.randn(4, 3, 2, 2)
    task.bank.rows.copy_(F.normalize(task.bank.rows, dim=1))
    order = torch.tensor([2, 0, 3, 1])
    other = copy.deepcopy(task)
    other.bank.rows.copy_(task.bank.rows[order])
    loss = task(views(x), CLOCK).loss
    torch.testing.assert_close(other(views(x[order]), CLOCK).loss, loss, atol=5e-3, rtol=0)
    assert (other(views(x), CLOCK).loss - loss).abs() > 0.1


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: MoCoBank sees 1 view of a picture"):
        MoCoBank(MoCoBank.Config(images=4, views=(View(count=2),)), ConvNet())
    with pytest.raises(ValueError, match=r"method\.images: 0; give the number"):
        MoCoBank(MoCoBank.Config(), ConvNet())
