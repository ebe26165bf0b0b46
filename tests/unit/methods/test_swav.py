import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, train, views

from saccade.core import Clock, View
from saccade.methods.swav import RECIPES, SwAV
from saccade.recipe import scaled_lr

LATER = Clock(9, 10, 3)  # epoch 3


def swav(prototypes=5, dim=12, **settings):
    """Features are the pictures themselves."""
    torch.manual_seed(1)
    task = SwAV(SwAV.Config(hidden=4, dim=dim, prototypes=prototypes, **settings), Pixels(dim))
    task.projector = nn.Identity()
    return task


def crops(n=4, b=6):
    torch.manual_seed(0)
    return list(torch.randn(n, b, 3, 2, 2).unbind())


def balanced(scores, epsilon=0.05, steps=3):
    q = (scores.double() / epsilon).exp().T
    for _ in range(steps):
        q = q / q.sum(1, keepdim=True)
        q = q / q.sum(0, keepdim=True)
    return q.T.float()


def by_loops(task, images, past=(None, None)):
    """Swapped prediction, term by term, with the codes as constants."""
    z = [F.normalize(x.flatten(1), dim=1) for x in images]
    total = torch.zeros(())
    for i in (0, 1):
        rows = z[i] if past[i] is None else torch.cat([past[i], z[i]])
        code = balanced(rows @ task.prototypes.detach().T)[-len(z[i]) :].detach()
        part = torch.zeros(())
        for v in range(len(z)):
            if v != i:
                for n in range(len(z[v])):
                    p = F.log_softmax(task.prototypes @ z[v][n] / 0.1, dim=0)
                    part = part - (code[n] * p).sum() / len(z[v])
        total = total + part / (len(z) - 1)
    return total / 2


@pytest.mark.parametrize("n", [2, 5])
def test_loss_and_gradient_equal_the_equation_written_as_loops(n):
    task, images = swav(), [x.requires_grad_() for x in crops(n)]
    losses = task(views(*images), CLOCK).loss, by_loops(task, images)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    inputs = (task.prototypes, *images)
    grads = [torch.autograd.grad(loss, inputs) for loss in losses]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("prototypes", [5, 3000])
def test_prototypes_that_agree_give_the_log_of_their_number_and_uniform_codes(prototypes):
    task = swav(prototypes)
    with torch.no_grad():
        task.prototypes.copy_(task.prototypes[:1].expand_as(task.prototypes))
    step = task(views(*crops()), CLOCK)
    assert step.loss.item() == pytest.approx(math.log(prototypes), rel=1e-5)
    assert step.logs["code_entropy"].item() == pytest.approx(math.log(prototypes), rel=1e-5)


def test_exchanging_the_code_crops_or_the_others_changes_nothing():
    a, b, c, d = crops()
    want = swav()(views(a, b, c, d), CLOCK).loss
    for images in ((b, a, c, d), (a, b, d, c)):
        torch.testing.assert_close(swav()(views(*images), CLOCK).loss, want)
    assert not torch.allclose(swav()(views(c, d, a, b), CLOCK).loss, want)


def test_small_crops_make_no_codes():
    a, b, c, d = crops()
    found = [swav()(views(*x), CLOCK).logs["code_entropy"] for x in ((a, b, c, d), (a, b, d))]
    assert torch.equal(*found)


def test_permuting_the_images_changes_nothing():
    images, order = crops(), torch.randperm(6)
    torch.testing.assert_close(
        swav()(views(*(x[order] for x in images)), CLOCK).loss, swav()(views(*images), CLOCK).loss
    )


def test_prototypes_have_unit_rows_after_every_update():
    task = build("swav", freeze_prototypes=0)
    start = task.prototypes.detach().clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(12))
    train(task, [batch_for("swav", i) for i in range(2)], lr=1.0)
    assert not torch.allclose(task.prototypes, start)
    torch.testing.assert_close(task.prototypes.norm(dim=1), torch.ones(12))


def test_frozen_prototypes_stand_still_despite_momentum_and_decay():
    task = build("swav", freeze_prototypes=2)
    optimizer = torch.optim.SGD(task.parameters(), 0.1, 0.9, weight_decay=0.1)
    places = []
    for step in range(5):
        clock = Clock(step, 5, 2)
        task(batch_for("swav", step), clock).loss.backward()
        assert task.prototypes.grad.abs().sum() > 0
        task.before_update(clock)
        optimizer.step()
        task.after_update(clock)
        optimizer.zero_grad()
        places.append(task.prototypes.detach().clone())
    torch.testing.assert_close(places[3], places[0], atol=1e-6, rtol=0)
    assert (places[4] - places[3]).abs().max() > 1e-3


def test_a_full_queue_joins_the_balance_with_stale_features_and_fresh_prototypes():
    task = swav(queue_size=12, queue_from_epoch=2)
    steps = [[x + i for x in crops()] for i in range(4)]
    for i in range(3):  # the third overwrites the first
        task(views(*steps[i]), Clock(i, 10, 3))
    with torch.no_grad():
        task.prototypes.copy_(task.prototypes.roll(1, 1))
    past = [torch.cat([F.normalize(steps[i][v].flatten(1), dim=1) for i in (2, 1)]) for v in (0, 1)]
    torch.testing.assert_close(task.queue.rows, torch.cat(past, 1))
    want = by_loops(task, steps[3], past)
    assert task(views(*steps[3]), LATER).loss.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize(("step", "epoch_steps"), [(1, 1), (2, 4)])  # not full, too early
def test_the_queue_waits_until_it_is_full_and_its_epoch_has_come(step, epoch_steps):
    images, clock = crops(), Clock(step, 10, epoch_steps)
    with_queue, without = swav(queue_size=12, queue_from_epoch=1), swav()
    assert torch.equal(with_queue(views(*images), clock).loss, without(views(*images), clock).loss)
    in_use = with_queue(views(*images), Clock(4, 10, 4)).loss
    assert not torch.allclose(in_use, without(views(*images), clock).loss)


def test_a_queue_that_the_batch_does_not_divide_is_refused_at_the_first_step():
    with pytest.raises(ValueError, match=r"method\.queue_size: 32 is not a multiple of the 6"):
        train(build("swav", queue_from_epoch=15), [noise(b=6)])


def test_crops_of_one_size_share_a_pass_and_the_head_runs_once():
    task, sizes, heads = build("swav"), [], []
    task.encoder.register_forward_hook(lambda _, inputs, out: sizes.append(inputs[0].shape))
    task.projector.register_forward_hook(lambda _, inputs, out: heads.append(out.shape))
    step = task(batch_for("swav"), CLOCK)
    assert sizes == [(16, 3, 32, 32), (16, 3, 16, 16)]
    assert heads == [(32, 8)]
    assert step.features.shape == (8, 16)


def test_codes_are_finite_in_half_precision():
    task = build("swav")
    with torch.autocast("cpu", torch.bfloat16):
        step = task(batch_for("swav"), CLOCK)
    assert step.loss.isfinite()
    assert step.loss.dtype == torch.float32


def test_recipes_hold_the_papers_figures():
    paper, small, plain = (RECIPES[n] for n in ("paper", "paper-256", "paper-2crops"))
    assert scaled_lr(paper.optim.lr, paper.optim.lr_rule, paper.batch_size) == pytest.approx(4.8)
    assert scaled_lr(small.optim.lr, small.optim.lr_rule, small.batch_size) == pytest.approx(0.6)
    assert paper.optim.decay_1d  # LARC adapts biases and norms too
    assert [(v.count, v.size, v.crop) for v in paper.method.views] == [
        (2, 224, (0.14, 1.0)),
        (6, 96, (0.05, 0.14)),
    ]
    assert plain.method.views[0].crop == (0.08, 1.0)
    assert (paper.method.queue_size, small.method.queue_size) == (0, 3840)
    assert paper.normalize.std == (0.228, 0.224, 0.225)


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: SwAV needs 2 views that make codes"):
        SwAV(SwAV.Config(views=(View(),)), ConvNet())
