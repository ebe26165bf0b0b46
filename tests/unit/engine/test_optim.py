import pytest
import torch
from torch import nn

from saccade.core import Group, Step, Task
from saccade.engine.optim import Lars, build, clip, set_rates
from saccade.recipe import Optim


class Toy(Task):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, batch, clock):
        return Step(self.line(batch).sum())


def lars_by_hand(w, grads, lrs, *, wd, trust, momentum, inside):
    """The equations as loops over plain numbers."""
    v = [0.0] * len(w)
    for g, lr in zip(grads, lrs, strict=True):
        g = [gi + wd * wi for gi, wi in zip(g, w, strict=True)]
        norm = lambda x: sum(xi * xi for xi in x) ** 0.5  # noqa: E731
        t = trust * norm(w) / norm(g) if norm(w) > 0 and norm(g) > 0 else 1.0
        v = [momentum * vi + (lr if inside else 1.0) * t * gi for vi, gi in zip(v, g, strict=True)]
        w = [wi - (1.0 if inside else lr) * vi for wi, vi in zip(w, v, strict=True)]
    return w


@pytest.mark.parametrize("inside", [False, True])
def test_lars_equals_its_equations_written_as_loops(inside):
    grads, lrs = torch.randn(4, 3).tolist(), [0.5, 0.4, 0.1, 0.3]
    p = nn.Parameter(torch.tensor([[0.3, -0.2, 0.5]]))
    opt = Lars([p], momentum=0.9, weight_decay=0.1, trust=0.02, lr_in_buffer=inside)
    for g, lr in zip(grads, lrs, strict=True):
        p.grad = torch.tensor([g])
        opt.param_groups[0]["lr"] = lr
        opt.step()
    want = lars_by_hand(
        [0.3, -0.2, 0.5], grads, lrs, wd=0.1, trust=0.02, momentum=0.9, inside=inside
    )
    assert p.detach()[0].tolist() == pytest.approx(want, rel=1e-5)


def test_the_two_forms_of_lars_agree_while_the_rate_is_constant():
    ends = []
    for inside in (False, True):
        p = nn.Parameter(torch.ones(2, 2))
        opt = Lars([p], lr=0.3, lr_in_buffer=inside)
        for step in range(5):
            p.grad = torch.full((2, 2), float(step + 1))
            opt.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends)


def test_biases_are_exempt_from_decay_and_adaptation_when_asked():
    opt = build(Toy(), Optim(name="lars", decay_1d=False))
    set_rates(opt, 0.5, 0.7, 0.1)
    by_shape = {g["params"][0].ndim: g for g in opt.param_groups}
    assert (by_shape[2]["weight_decay"], by_shape[2]["adapt"]) == (0.1, True)
    assert (by_shape[1]["weight_decay"], by_shape[1]["adapt"]) == (0.0, False)
    assert all(g["lr"] == 0.5 for g in opt.param_groups)


def test_a_group_with_a_constant_rate_keeps_the_peak_through_the_schedule():
    class Predictor(Toy):
        def groups(self):
            (w, b) = self.line.named_parameters()
            return [Group([w], constant_lr=True), Group([b])]

    opt = build(Predictor(), Optim())
    set_rates(opt, 0.2, 0.5, 0.0)
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.2]


def test_frozen_parameters_are_in_no_group():
    opt = build(Toy(), Optim())
    assert sum(p.numel() for g in opt.param_groups for p in g["params"]) == 3 * 2 + 2


def test_groups_that_forget_a_parameter_are_a_bug():
    class Forgetful(Toy):
        def groups(self):
            return [Group([("line.weight", self.line.weight)])]

    with pytest.raises(AssertionError, match="each trainable parameter once"):
        build(Forgetful(), Optim())


def test_clip_by_tensor_limits_each_norm_and_leaves_small_ones():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    norm = clip([a, b], 1.0, "tensor")
    assert norm.item() == pytest.approx((25 + 0.25) ** 0.5)
    torch.testing.assert_close(a.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(b.grad, torch.tensor([0.3, 0.4]))


def test_clip_of_all_limits_the_norm_of_all_together():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    clip([a, b], 1.0, "all")
    torch.testing.assert_close(torch.cat([a.grad, b.grad]), torch.tensor([0.6, 0.8]))
