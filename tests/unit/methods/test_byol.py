import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, train, views

from saccade.core import Clock, View
from saccade.methods.byol import BYOL, RECIPES, distance
from saccade.nn.functional import cosine_ramp, deviation
from saccade.nn.parts import Ema


def byol(**settings):
    """Online and target pass the pictures on."""
    task = BYOL(BYOL.Config(hidden=4, dim=12, **settings), Pixels())
    task.projector, task.predictor = nn.Identity(), nn.Identity()
    task.teacher_projector = Ema(nn.Identity())
    return task


def test_equals_the_equation_written_as_loops():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 2, 2).unbind()
    total = 0.0
    for x, y in zip(a.flatten(1), b.flatten(1), strict=True):
        for p, q in zip(x, y, strict=True):
            total += 2 * float(p / math.sqrt(x @ x) - q / math.sqrt(y @ y)) ** 2
    loss = byol()(views(a, b), CLOCK).loss
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)


def test_each_direction_reaches_from_zero_to_four():
    x = torch.randn(6, 12)
    assert distance(x, 3 * x).item() == pytest.approx(0, abs=1e-6)
    assert distance(x, -x).item() == pytest.approx(4)
    assert distance(torch.eye(12)[:6], torch.eye(12)[6:]).item() == pytest.approx(2)


def test_lengths_do_not_matter():
    q, z = torch.randn(2, 6, 12).unbind()
    scales = torch.rand(6, 1) + 0.1
    torch.testing.assert_close(distance(7 * q, scales * z), distance(q, z))


def test_the_total_starts_near_four_for_a_network_of_realistic_width():
    torch.manual_seed(0)
    task = BYOL(BYOL.Config(hidden=256, dim=256), ConvNet()).train()
    step = task(noise(b=32), CLOCK)
    assert step.loss.item() == pytest.approx(4, abs=0.6)
    assert step.logs["spread"] > 0.3


def test_swapping_the_views_changes_nothing():
    task = build("byol").train()
    a, b = noise().images
    other = copy.deepcopy(task)
    torch.testing.assert_close(task(views(a, b), CLOCK).loss, other(views(b, a), CLOCK).loss)


def test_no_gradient_reaches_the_target():
    task = build("byol").train()
    task(batch_for("byol"), CLOCK).loss.backward()
    assert all(p.grad is None for p in (*task.teacher.parameters(),))
    assert all(p.grad is None for p in task.teacher_projector.parameters())
    assert all(p.grad is not None for p in task.predictor.parameters())


def test_momentum_climbs_along_half_a_cosine():
    assert [cosine_ramp(0.99, 1.0, t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.99, 0.995, 1])


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_target_at_the_limits_of_momentum(momentum):
    task = build("byol", momentum=momentum)
    start = copy.deepcopy(task)
    train(task, [batch_for("byol")])
    source = start if momentum else task
    online = (*source.encoder.parameters(), *source.projector.parameters())
    target = (*task.teacher.parameters(), *task.teacher_projector.parameters())
    assert all(torch.equal(a, b) for a, b in zip(target, online, strict=True))


def test_the_target_starts_as_a_copy_and_the_online_encoder_is_kept():
    task = build("byol")
    for mine, source in ((task.teacher, task.encoder), (task.teacher_projector, task.projector)):
        state = mine.module.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in source.state_dict().items())
    assert task.kept() is task.encoder


def test_the_target_moves_by_the_new_weights_and_the_momentum_of_the_step():
    task = build("byol", momentum=0.5)
    with torch.no_grad():
        task.encoder.body[0].weight.fill_(1.0)
        task.teacher.module.body[0].weight.fill_(0.0)
    task.after_update(Clock(5, 10, 5))
    torch.testing.assert_close(
        task.teacher.module.body[0].weight, torch.full((8, 3, 3, 3), 1 - 0.75)
    )


def test_a_random_target_that_never_moves_is_still_learned_from():
    losses = train(build("byol", momentum=1.0), [noise()] * 15, lr=0.05, total=15)
    assert losses[-1] < 0.5 * losses[0]


def test_views_pass_one_at_a_time_through_both_networks():
    task = build("byol").train()
    seen = []
    for net in (task.encoder, task.teacher.module):
        net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    task(batch_for("byol"), CLOCK)
    assert seen == [8, 8, 8, 8]


def test_batch_statistics_of_the_target_come_from_its_own_passes():
    task = build("byol", momentum=1.0).train()
    mean, var = torch.zeros(8), torch.ones(8)
    conv = copy.deepcopy(task.teacher.module.body[0])
    for x in noise().images:
        F.batch_norm(conv(x), mean, var, training=True, momentum=0.1)
    task(noise(), CLOCK)
    torch.testing.assert_close(task.teacher.module.body[1].running_mean, mean)
    torch.testing.assert_close(task.teacher.module.body[1].running_var, var)


def test_a_collapsed_network_shows_no_spread():
    task = byol()
    x = torch.ones(6, 3, 2, 2)
    step = task(views(x, x), CLOCK)
    assert step.loss.item() == pytest.approx(0, abs=1e-6)
    assert step.logs["spread"] == pytest.approx(0, abs=1e-5)


def test_without_a_predictor_and_a_teacher_the_outputs_become_constant():
    """The trivial solution; with a predictor the same steps keep the outputs apart."""
    left = {}
    for predict in (True, False):
        torch.manual_seed(0)
        cfg = BYOL.Config(hidden=32, dim=8, momentum=0.0, predict=predict)
        task = BYOL(cfg, ConvNet())
        optimizer = torch.optim.SGD(task.parameters(), lr=0.2, momentum=0.9)
        pictures = torch.rand(32, 3, 8, 8)
        for _ in range(80):
            noisy = (pictures + 0.1 * torch.randn_like(pictures) for _ in range(2))
            step = task(views(*noisy), CLOCK)
            optimizer.zero_grad()
            step.loss.backward()
            optimizer.step()
            task.after_update(CLOCK)
        left[predict] = deviation(step.outputs).item()
    assert left[False] < 0.05 < left[True]


def test_the_papers_two_views_differ_in_blur_and_solarization():
    one, two = RECIPES["paper"].method.views
    assert (one.blur, one.solarize, two.blur, two.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert RECIPES["paper"].sync_batch_norm


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: BYOL compares 2 views, not 3"):
        BYOL(BYOL.Config(views=(View(count=3),)), ConvNet())
