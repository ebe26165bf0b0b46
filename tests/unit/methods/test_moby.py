import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, train, views

from saccade.backbones import create
from saccade.core import Clock, View
from saccade.methods.moby import RECIPES, MoBY
from saccade.nn.parts import Ema


def moby(**settings):
    """Online and averaged networks pass the pictures on."""
    torch.manual_seed(0)
    task = MoBY(MoBY.Config(hidden=4, dim=12, queue_size=6, **settings), Pixels())
    task.projector, task.predictor = nn.Identity(), nn.Identity()
    task.teacher_projector = Ema(nn.Identity())
    return task


def test_equals_the_equation_written_as_loops():
    task = moby(temperature=0.3)
    a, b = torch.randn(2, 3, 3, 2, 2).unbind()
    total = 0.0
    for x, y, queue in ((a, b, task.queue_b), (b, a, task.queue_a)):
        q, k = (F.normalize(v.flatten(1), dim=-1) for v in (x, y))
        for i in range(3):
            s = [math.exp(float(q[i] @ key) / 0.3) for key in [k[i], *queue.rows]]
            total += -math.log(s[0] / sum(s)) / 3
    assert task(views(a, b), CLOCK).loss.item() == pytest.approx(total, rel=1e-5)


def test_fresh_networks_with_the_papers_queue_start_near_twice_the_log_of_4097():
    losses = []
    for seed in range(6):
        torch.manual_seed(seed)
        task = MoBY(MoBY.Config(hidden=512), ConvNet()).train()
        losses.append(task(noise(seed, b=16), CLOCK).loss.item())
    assert 2 * math.log(4097) == pytest.approx(16.64, abs=0.01)
    assert sum(losses) / 6 == pytest.approx(16.64, abs=0.4)


def test_equal_vectors_everywhere_give_the_log_of_the_number_of_candidates():
    task, x = moby(), torch.ones(4, 3, 2, 2)
    for queue in (task.queue_a, task.queue_b):
        queue.rows.fill_(12**-0.5)
    assert task(views(x, x), CLOCK).loss.item() == pytest.approx(2 * math.log(7), rel=1e-5)


def test_swapping_views_and_queues_changes_nothing():
    task = moby()
    other = copy.deepcopy(task)
    other.queue_a, other.queue_b = other.queue_b, other.queue_a
    a, b = torch.randn(2, 3, 3, 2, 2).unbind()
    loss = task(views(a, b), CLOCK).loss
    torch.testing.assert_close(other(views(b, a), CLOCK).loss, loss)
    other.queue_a, other.queue_b = other.queue_b, other.queue_a
    assert other(views(b, a), CLOCK).loss != loss


def test_a_step_puts_unit_keys_of_each_view_into_its_queue():
    task = moby()
    before = copy.deepcopy(task)
    a, b = torch.randn(2, 3, 3, 2, 2).unbind()
    task(views(a, b), CLOCK)
    assert torch.equal(task.queue_a.rows, before.queue_a.rows)  # not before the update
    task.enqueue()
    for queue, old, x in ((task.queue_a, before.queue_a, a), (task.queue_b, before.queue_b, b)):
        torch.testing.assert_close(queue.rows[:3], F.normalize(x.flatten(1), dim=-1))
        assert torch.equal(queue.rows[3:], old.rows[3:])
        assert queue.head == 3
    task(views(a, b), CLOCK)
    task.enqueue()
    assert task.queue_a.head == task.queue_b.head == 0  # two steps of 3 fill 6 rows
    torch.testing.assert_close(task.queue_a.rows.norm(dim=-1), torch.ones(6))


def test_a_queue_that_is_no_multiple_of_the_batch_is_refused():
    task = moby()
    task(views(*torch.randn(2, 4, 3, 2, 2)), CLOCK)
    with pytest.raises(ValueError, match=r"method\.queue_size: 6 is not a multiple of the 4 keys"):
        task.enqueue()


def test_only_the_trained_encoder_has_stochastic_depth():
    net = ConvNet()
    net.body.append(DropPath(0.2))
    task = MoBY(MoBY.Config(hidden=8, dim=8, queue_size=16), net).train()
    assert task.encoder.body[-1].drop_prob == 0.2
    assert task.teacher.module.body[-1].drop_prob == 0
    still = copy.deepcopy(task.teacher)
    x = noise().images[0]
    assert torch.equal(task.teacher(x), still(x))


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "dim"), [("paper", 768), ("deit", 384)])
def test_the_papers_backbones_drop_paths_in_the_trained_network_only(recipe, dim):
    cfg = dataclasses.replace(RECIPES[recipe].backbone, image_size=32)
    task = MoBY(MoBY.Config(hidden=8, dim=8, queue_size=16), create(cfg)).train()
    assert task.encoder.dim == dim
    rates = [m.drop_prob for m in task.encoder.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.2)
    assert all(m.drop_prob == 0 for m in task.teacher.modules() if isinstance(m, DropPath))
    step = task(noise(b=2), CLOCK)
    assert step.features.shape == (2, dim)
    step.loss.backward()
    assert all(p.grad is None for p in task.teacher.parameters())


def test_the_average_moves_before_the_keys_of_the_next_step():
    for step, momentum in ((4, 0.995), (9, 1.0)):
        task = build("moby", momentum=0.99)
        with torch.no_grad():
            task.encoder.body[0].weight.fill_(1.0)
            task.teacher.module.body[0].weight.fill_(0.0)
        task.after_update(Clock(step, 10, 5))
        got = task.teacher.module.body[0].weight
        torch.testing.assert_close(got, torch.full_like(got, 1 - momentum))


def test_momentum_goes_on_where_a_resumed_run_stood():
    task = build("moby", momentum=0.5)
    train(task, [batch_for("moby", i) for i in range(2)])
    again = build("moby", momentum=0.5)
    again.load_state_dict(task.state_dict())
    ends = []
    for t in (task, again):
        start = t.teacher.module.body[0].weight.clone()
        t.encoder.body[0].weight.data += 1
        t.after_update(Clock(2, 4, 2))  # momentum for step 3 of 4
        momentum = 1 - 0.5 * (1 + math.cos(math.pi * 3 / 4)) / 2
        want = momentum * start + (1 - momentum) * t.encoder.body[0].weight
        torch.testing.assert_close(t.teacher.module.body[0].weight, want)
        ends.append(t.teacher.module.body[0].weight)
    assert torch.equal(*ends)
    assert task.kept() is task.encoder


def test_without_a_predictor_it_is_symmetric_moco():
    task = moby()
    a, b = torch.randn(2, 3, 3, 2, 2).unbind()
    q, k = F.normalize(a.flatten(1), dim=-1), F.normalize(b.flatten(1), dim=-1)
    losses = []
    for x, y, rows in ((q, k, task.queue_b.rows), (k, q, task.queue_a.rows)):
        logits = torch.cat([(x * y).sum(1, keepdim=True), x @ rows.T], 1) / 0.2
        losses.append(F.cross_entropy(logits, torch.zeros(3, dtype=torch.long)))
    torch.testing.assert_close(task(views(a, b), CLOCK).loss, sum(losses))


def test_no_gradient_reaches_the_keys_and_queues_resume():
    task = build("moby").train()
    task(batch_for("moby"), CLOCK).loss.backward()
    assert all(p.grad is None for p in (*task.teacher.parameters(),))
    assert all(p.grad is not None for p in task.predictor.parameters())
    train(task, [batch_for("moby", 1)])
    again = build("moby")
    again.load_state_dict(task.state_dict())
    assert torch.equal(again.queue_b.rows, task.queue_b.rows)
    assert again.queue_b.head == task.queue_b.head


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: MoBY compares 2 views, not 3"):
        MoBY(MoBY.Config(views=(View(count=3),)), ConvNet())
