import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, Pixels, batch_for, build, noise, views

from saccade.core import View
from saccade.methods.simsiam import RECIPES, SimSiam


def simsiam():
    """Projections are the pictures themselves, predictions a linear map of them."""
    torch.manual_seed(0)
    task = SimSiam(SimSiam.Config(dim=12, bottleneck=4), Pixels())
    task.projector, task.predictor = nn.Identity(), nn.Linear(12, 12)
    return task


def test_equals_the_equation_written_as_loops():
    torch.manual_seed(1)
    a, b = torch.randn(2, 5, 3, 2, 2).unbind()
    task, total = simsiam(), 0.0
    for x, y in zip(a.flatten(1), b.flatten(1), strict=True):
        for p, z in ((task.predictor(x), y), (task.predictor(y), x)):
            total -= (p @ z / (p.norm() * z.norm())).item() / 2
    assert task(views(a, b), CLOCK).loss.item() == pytest.approx(total / 5, rel=1e-5)


def test_the_loss_ends_at_minus_one_for_a_constant_and_shows_the_collapse():
    task = simsiam()
    task.predictor = nn.Identity()
    x = torch.ones(6, 3, 2, 2)
    step = task(views(x, x), CLOCK)
    assert step.loss.item() == pytest.approx(-1)
    assert step.logs["spread"] == pytest.approx(0, abs=1e-5)


def test_spread_is_one_for_random_directions():
    torch.manual_seed(0)
    a, b = torch.randn(2, 400, 3, 2, 2).unbind()
    assert simsiam()(views(a, b), CLOCK).logs["spread"].item() == pytest.approx(1, abs=0.02)


def test_gradient_reaches_predictions_and_stops_at_projections():
    torch.manual_seed(1)
    a, b = (x.requires_grad_() for x in torch.randn(2, 5, 3, 2, 2).unbind())
    task = simsiam()
    (found,) = torch.autograd.grad(task(views(a, b), CLOCK).loss, a)
    p, z = task.predictor(a.flatten(1)), b.flatten(1).detach()  # a is only predicted from here
    (wanted,) = torch.autograd.grad(-F.cosine_similarity(p, z).mean() / 2, a)
    torch.testing.assert_close(found, wanted)


def test_swapping_the_views_changes_nothing():
    task = build("simsiam").train()
    a, b = noise().images
    other = copy.deepcopy(task)
    torch.testing.assert_close(task(views(a, b), CLOCK).loss, other(views(b, a), CLOCK).loss)


def test_one_network_sees_each_view_alone():
    task = build("simsiam").train()
    seen = []
    task.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    task(batch_for("simsiam"), CLOCK)
    assert seen == [8, 8]


def test_only_the_predictor_keeps_a_constant_rate():
    task = build("simsiam")
    rest, predictor = task.groups()
    assert (rest.constant_lr, predictor.constant_lr) == (False, True)
    assert {n.partition(".")[0] for n, _ in predictor.params} == {"predictor"}
    assert {n.partition(".")[0] for n, _ in rest.params} == {"encoder", "projector"}


def test_everything_decays_in_the_paper():
    optim = RECIPES["paper"].optim
    assert (optim.decay_1d, optim.weight_decay, optim.schedule.per) == (True, 1e-4, "epoch")


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: SimSiam compares 2 views, not 1"):
        SimSiam(SimSiam.Config(views=(View(),)), Pixels())
