import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, noise, train, views

from saccade.core import View
from saccade.methods.simclr_v2 import SimCLRv2
from saccade.nn.parts import Ema


def simclr(size=0, **settings):
    """Projections are the pictures themselves."""
    torch.manual_seed(0)
    task = SimCLRv2(SimCLRv2.Config(dim=12, queue_size=size, **settings), Pixels())
    task.projector = nn.Identity()
    if size:
        task.slow_projector = Ema(nn.Identity())
    return task


def by_loops(a, b, queue, t):
    z = F.normalize(torch.cat([a, b]).flatten(1), dim=1)
    n, total = len(a), 0.0
    for i in range(2 * n):
        s = [math.exp(float(z[i] @ z[k]) / t) for k in range(2 * n)]
        past = sum(math.exp(float(z[i] @ row) / t) for row in queue)
        total -= math.log(s[(i + n) % (2 * n)] / (sum(s) - s[i] + past))
    return total / (2 * n)


@pytest.mark.parametrize("size", [0, 16])
def test_equals_the_equation_written_as_loops(size):
    torch.manual_seed(1)
    a, b = torch.randn(2, 4, 3, 2, 2).unbind()
    task = simclr(size, temperature=0.5)
    queue = task.queue.rows if size else []
    want = by_loops(a, b, queue, 0.5)
    assert task(views(a, b), CLOCK).loss.item() == pytest.approx(want, rel=1e-5)


def test_past_projections_come_from_the_averaged_network_the_views_of_a_picture_in_turn():
    torch.manual_seed(1)
    a, b = torch.randn(2, 4, 3, 2, 2).unbind()
    task = simclr(16)
    task(views(a, b), CLOCK)
    task.enqueue()
    rows = F.normalize(torch.stack([a, b], 1).flatten(0, 1).flatten(1), dim=1)
    torch.testing.assert_close(task.queue.rows[:8], rows)


def test_no_gradient_reaches_the_averaged_network():
    torch.manual_seed(0)
    task = SimCLRv2(SimCLRv2.Config(dim=8, queue_size=16), ConvNet()).train()
    task(noise(b=4), CLOCK).loss.backward()
    slow = [*task.slow_encoder.parameters(), *task.slow_projector.parameters()]
    assert slow
    assert all(p.grad is None for p in slow)
    assert all(p.grad is not None for p in task.projector.parameters())


def test_the_head_has_three_layers_as_wide_as_the_encoder_and_starts_as_the_official_one():
    torch.manual_seed(0)
    task = SimCLRv2(SimCLRv2.Config(dim=8), ConvNet())
    unit = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in task.projector] == [*unit, *unit, nn.Linear, nn.BatchNorm1d]
    widths = [(m.in_features, m.out_features) for m in task.projector if isinstance(m, nn.Linear)]
    assert widths == [(16, 16), (16, 16), (16, 8)]
    assert all(m.bias is None for m in task.projector if isinstance(m, nn.Linear))
    assert task.projector[-1].bias is None
    assert task.projector[0].weight.std().item() == pytest.approx(0.01, rel=0.2)


def test_what_the_run_keeps_of_the_head_gives_its_hidden_layers_bit_for_bit():
    torch.manual_seed(0)
    task = SimCLRv2(SimCLRv2.Config(dim=8), ConvNet())
    train(task, [noise(i) for i in range(2)])
    kept = {k.removeprefix("projector."): v for k, v in task.heads().items()}
    again = nn.Sequential(
        *(
            m()
            for _ in range(2)
            for m in (lambda: nn.Linear(16, 16, bias=False), lambda: nn.BatchNorm1d(16), nn.ReLU)
        )
    )
    again.load_state_dict(kept)
    h = torch.randn(5, 16)
    assert torch.equal(again.eval()(h), task.eval().projector[:6](h))


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"views": (View(),)}, "compares 2 views, not 1"), ({"layers": 0}, r"method\.layers: 0")],
)
def test_settings_that_cannot_be_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        SimCLRv2(SimCLRv2.Config(**settings), ConvNet())
