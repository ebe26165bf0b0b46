import math

import pytest
import torch
from torch import nn
from toys import CLOCK, ConvNet, Pixels, build, noise, views

from saccade.core import View
from saccade.methods.vicreg import VICReg


def vicreg(dim=12, **weights):
    """Embeddings are the pictures themselves."""
    task = VICReg(VICReg.Config(hidden=4, dim=dim, **weights), Pixels(dim))
    task.projector = nn.Identity()
    return task


def pictures(rows):
    return rows[:, :, None, None]


def pair():
    torch.manual_seed(0)
    a, b = torch.randn(2, 7, 3, 2, 2).unbind()
    return 0.8 * a, 0.9 * b


def by_loops(a, b):
    a, b = a.flatten(1).tolist(), b.flatten(1).tolist()
    n, d = len(a), len(a[0])
    s = sum((x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
    v = c = 0.0
    for z in (a, b):
        mean = [sum(row[i] for row in z) / n for i in range(d)]
        for i in range(d):
            for j in range(d):
                cov = sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in z) / (n - 1)
                if i == j:
                    v += max(0.0, 1 - math.sqrt(cov + 1e-4)) / d / 2
                else:
                    c += cov**2 / d
    return s / (n * d), v, c


def test_equals_the_equation_written_as_loops():
    s, v, c = by_loops(*pair())
    assert min(s, v, c) > 0.01
    step = vicreg()(views(*pair()), CLOCK)
    assert step.loss.item() == pytest.approx(25 * s + 25 * v + c, rel=1e-5)
    found = [step.logs[k].item() for k in ("invariance", "variance", "covariance")]
    assert found == pytest.approx([s, v, c], rel=1e-5)
    weighted = vicreg(invariance=2.0, variance=3.0, covariance=4.0)(views(*pair()), CLOCK)
    assert weighted.loss.item() == pytest.approx(2 * s + 3 * v + 4 * c, rel=1e-5)


def test_equal_views_of_wide_uncorrelated_channels_give_zero():
    x = 2 * torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert vicreg(3)(views(pictures(x), pictures(x)), CLOCK).loss.item() == 0


def test_collapse_costs_the_hinge_alone_and_its_gradient_is_finite():
    x = torch.ones(4, 3, 2, 2, requires_grad=True)
    step = vicreg()(views(x, x), CLOCK)
    assert step.loss.item() == pytest.approx(25 * (1 - 0.01), rel=1e-5)
    assert step.logs["variance"].item() == pytest.approx(0.99, rel=1e-5)
    step.loss.backward()
    assert x.grad.isfinite().all()


def test_channels_beyond_a_deviation_of_one_cost_nothing_more():
    a, b = pair()
    logs = vicreg()(views(10 * a, 20 * b), CLOCK).logs
    assert logs["variance"] == 0


def test_swapping_views_permuting_images_and_shifting_both_change_nothing():
    a, b = pair()
    want = vicreg()(views(a, b), CLOCK).loss
    order = torch.randperm(7)
    for x, y in ((b, a), (a[order], b[order]), (a + 3, b + 3)):
        torch.testing.assert_close(vicreg()(views(x, y), CLOCK).loss, want)


def test_invariance_pulls_and_covariance_turns_without_touching_lone_channels():
    x = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    step = vicreg(1)(views(pictures(x), pictures(x)), CLOCK)
    assert step.logs["covariance"] == 0
    a, b = (x.requires_grad_() for x in pair())
    vicreg(variance=0.0, covariance=0.0)(views(a, b), CLOCK).loss.backward()
    torch.testing.assert_close(a.grad, 25 * 2 * (a - b).detach() / a.numel())
    torch.testing.assert_close(b.grad, -a.grad)


def test_every_view_passes_alone_and_features_are_those_of_the_first():
    task, seen = build("vicreg"), []
    task.encoder.register_forward_hook(lambda _, inputs, out: seen.append(out))
    step = task(noise(b=4), CLOCK)
    assert [len(x) for x in seen] == [4, 4]
    assert torch.equal(step.features, seen[0])


def test_head_ends_in_a_linear_layer_without_norm():
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in build("vicreg").projector] == [*block, *block, nn.Linear]


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: VICReg compares 2 views, not 1"):
        VICReg(VICReg.Config(views=(View(),)), ConvNet())
