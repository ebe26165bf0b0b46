import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, train, views

from saccade.core import View
from saccade.methods.nnclr import NNCLR


def nnclr(dim=12, size=8, temperature=0.1):
    """Projections and predictions are the pictures themselves."""
    torch.manual_seed(1)
    cfg = NNCLR.Config(
        hidden=4, dim=dim, predictor_hidden=4, queue_size=size, temperature=temperature
    )
    task = NNCLR(cfg, Pixels(dim))
    task.projector = task.predictor = nn.Identity()
    return task


def pair():
    torch.manual_seed(0)
    return torch.randn(2, 4, 3, 2, 2).unbind()


def unit(x):
    return F.normalize(x.flatten(1), dim=1)


def by_loops(a, b, queue, temperature):
    total = 0.0
    for z, p in ((unit(a), unit(b)), (unit(b), unit(a))):
        for i in range(len(z)):
            n = max(queue, key=lambda row: float(row @ z[i]))
            s = [math.exp(float(n @ other) / temperature) for other in p]
            total -= math.log(s[i] / sum(s))
    return total / (2 * len(a))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_the_equation_written_as_loops(temperature):
    task, (a, b) = nnclr(temperature=temperature), pair()
    want = by_loops(a, b, task.queue.rows.clone(), temperature)
    assert task(views(a, b), CLOCK).loss.item() == pytest.approx(want, rel=1e-5)


def test_a_queue_of_one_direction_gives_both_views_the_same_neighbor():
    task, (a, b) = nnclr(), pair()
    task.queue.rows[:] = unit(a)[:1]
    n, total = unit(a)[0], 0.0
    for p in (unit(a), unit(b)):
        total += F.cross_entropy((p @ n / 0.1).expand(4, 4), torch.arange(4)).item()
    assert task(views(a, b), CLOCK).loss.item() == pytest.approx(total / 2, rel=1e-5)


def test_equal_predictions_give_the_log_of_the_number_of_images():
    x = torch.ones(4, 3, 2, 2)
    step = nnclr()(views(x, x), CLOCK)
    assert step.loss.item() == pytest.approx(math.log(4), rel=1e-6)


def test_images_that_stand_in_the_queue_are_their_own_neighbors():
    x = torch.eye(4)[:, :, None, None]
    task = nnclr(dim=4, size=4, temperature=0.5)
    task.queue.rows[:] = torch.eye(4)
    step = task(views(x, x), CLOCK)
    assert step.logs["own"] == 1
    assert step.logs["neighbor"].item() == pytest.approx(1)
    assert step.loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), rel=1e-5)


def test_only_projections_of_the_first_view_join_the_queue_after_it_was_read():
    task, (a, b) = nnclr(), pair()
    queue = task.queue.rows.clone()
    task(views(a, b), CLOCK)
    torch.testing.assert_close(task.queue.rows, torch.cat([unit(a), queue[4:]]))
    again = task(views(a, b), CLOCK).loss
    assert again.item() == pytest.approx(
        by_loops(a, b, torch.cat([unit(a), queue[4:]]), 0.1), rel=1e-5
    )


def test_neighbors_carry_no_gradient():
    task, (a, b) = nnclr(), (x.requires_grad_() for x in pair())
    n = [task.nearest(unit(x)).detach() for x in (a, b)]
    loss = task(views(a, b), CLOCK).loss
    own = torch.arange(4)
    plain = F.cross_entropy(n[0] @ unit(b).T / 0.1, own) + F.cross_entropy(
        n[1] @ unit(a).T / 0.1, own
    )
    for x, y in zip(
        torch.autograd.grad(loss, (a, b)), torch.autograd.grad(plain / 2, (a, b)), strict=True
    ):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def test_swapping_views_and_permuting_images_change_nothing():
    a, b = pair()
    want = nnclr()(views(a, b), CLOCK).loss
    order = torch.randperm(4)
    for x, y in ((b, a), (a[order], b[order])):
        torch.testing.assert_close(nnclr()(views(x, y), CLOCK).loss, want)


def test_heads_are_the_papers_but_for_shifts_that_a_norm_undoes():
    task = build("nnclr")
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in task.projector] == [*block, *block, nn.Linear, nn.BatchNorm1d]
    assert [type(m) for m in task.predictor] == [*block, nn.Linear]
    assert task.projector[-1].bias is None
    assert task.predictor[-1].bias is not None


def test_queue_holds_unit_rows_and_its_head_wraps():
    task = build("nnclr")
    train(task, [batch_for("nnclr", i) for i in range(5)])
    torch.testing.assert_close(task.queue.rows.norm(dim=1), torch.ones(32))
    assert task.queue.head.item() == 5 * 8 % 32


def test_a_queue_that_the_batch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"method\.queue_size: 32 is not a multiple of the 6"):
        train(build("nnclr"), [noise(b=6)])


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: NNCLR compares 2 views, not 3"):
        NNCLR(NNCLR.Config(views=(View(count=3),)), ConvNet())
