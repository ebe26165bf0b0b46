import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, train, views

from saccade.core import View
from saccade.methods.moco import RECIPES, MoCo, shuffle, unshuffle
from saccade.nn.norm import SplitBatchNorm
from saccade.nn.parts import Ema


def moco(temperature=0.2, dim=12, size=8, **settings):
    """Embeddings are the pictures themselves."""
    cfg = MoCo.Config(hidden=0, dim=dim, queue_size=size, temperature=temperature, **settings)
    task = MoCo(cfg, Pixels(dim))
    task.projector = nn.Identity()
    task.key_projector = Ema(nn.Identity())
    return task


def pictures(rows):
    return rows[:, :, None, None]


def by_loops(q, k, queue, temperature):
    q, k = F.normalize(q.flatten(1), dim=1), F.normalize(k.flatten(1), dim=1)
    total = 0.0
    for i in range(len(q)):
        up = math.exp(float(q[i] @ k[i]) / temperature)
        down = up + sum(math.exp(float(q[i] @ row) / temperature) for row in queue)
        total -= math.log(up / down)
    return total / len(q)


def test_equals_the_equation_written_as_loops():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3, 2, 2).unbind()
    task = moco()
    want = by_loops(a, b, task.queue.rows.clone(), 0.2)
    assert task(views(a, b), CLOCK).loss.item() == pytest.approx(want, rel=1e-5)


def test_symmetric_adds_both_directions_over_one_queue_and_pushes_both_views():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3, 2, 2).unbind()
    task = moco(symmetric=True)
    queue = task.queue.rows.clone()
    want = by_loops(a, b, queue, 0.2) + by_loops(b, a, queue, 0.2)
    assert task(views(a, b), CLOCK).loss.item() == pytest.approx(want, rel=1e-5)
    task.enqueue()
    keys = F.normalize(torch.cat([a, b]).flatten(1), dim=1)
    torch.testing.assert_close(task.queue.rows, keys)


def test_equal_embeddings_give_the_log_of_queue_and_positive():
    task = moco(dim=4, size=64)
    task.queue.rows[:] = torch.tensor([1.0, 0, 0, 0])
    x = pictures(torch.tensor([[1.0, 0, 0, 0]] * 4))
    assert task(views(x, x), CLOCK).loss.item() == pytest.approx(math.log(65), rel=1e-6)


@pytest.mark.parametrize(("temperature", "loss"), [(0.07, 0.040), (0.2, 6.09)])
def test_perfect_positive_against_orthogonal_queue_gives_the_published_loss(temperature, loss):
    task = moco(temperature, dim=4, size=65536)
    task.queue.rows[:] = torch.tensor([0.0, 1, 0, 0])
    x = pictures(torch.tensor([[1.0, 0, 0, 0]] * 4))
    step = task(views(x, x), CLOCK)
    assert step.loss.item() == pytest.approx(loss, abs=5e-3)
    assert step.logs["accuracy"] == 1
    assert step.logs["positive"].item() == pytest.approx(1)


def test_keys_of_a_batch_are_no_negatives_of_that_batch_but_of_the_next():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3, 2, 2).unbind()
    task = moco()
    first = task(views(a, b), CLOCK).loss
    task.enqueue()
    again = task(views(a, b), CLOCK).loss
    queue = task.queue.rows.clone()
    assert again.item() > first.item()
    torch.testing.assert_close(queue[:4], F.normalize(b.flatten(1), dim=1))
    assert again.item() == pytest.approx(
        by_loops(a, b, torch.cat([queue[:4], moco_start()[4:]]), 0.2), rel=1e-5
    )


def moco_start():
    torch.manual_seed(0)
    torch.randn(2, 4, 3, 2, 2)
    return moco().queue.rows


def test_queue_holds_unit_rows_and_its_head_wraps():
    task = build("moco")
    train(task, [batch_for("moco", i) for i in range(5)])
    torch.testing.assert_close(task.queue.rows.norm(dim=1), torch.ones(32))
    assert task.queue.head.item() == 5 * 8 % 32


def test_a_random_queue_is_easy_and_the_loss_rises_until_real_keys_have_filled_it():
    torch.manual_seed(0)
    task, losses = moco(0.07, dim=128, size=32), []
    x = pictures(F.normalize(torch.ones(40, 128) + 0.5 * torch.randn(40, 128), dim=1))
    for part in x.split(8):
        losses.append(task(views(part, part), CLOCK).loss.item())
        task.enqueue()
    real = math.exp((0.8 - 1) / 0.07)  # of a key about the same direction, over the positive's
    wanted = [math.log(1 + keys * real) for keys in range(0, 40, 8)]
    assert losses[0] < 0.01 < losses[1]
    assert losses == sorted(losses)
    assert losses == pytest.approx(wanted, abs=0.15)


def test_permuting_the_batch_changes_nothing():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3, 2, 2).unbind()
    task, order = moco(), torch.randperm(4)
    other = copy.deepcopy(task)
    torch.testing.assert_close(
        task(views(a, b), CLOCK).loss, other(views(a[order], b[order]), CLOCK).loss
    )


def test_unshuffle_undoes_shuffle():
    x, order = torch.randn(6, 3), torch.randperm(6)
    assert torch.equal(unshuffle(shuffle(x, order), order), x)
    assert torch.equal(shuffle(x, order), x[order])


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_key_network_at_the_limits_of_momentum(momentum):
    task = build("moco", momentum=momentum)
    start = copy.deepcopy(task.key_encoder.module)
    train(task, [batch_for("moco")])
    source = task.encoder if momentum == 0 else start
    assert not torch.equal(task.encoder.body[0].weight, start.body[0].weight)
    for mine, theirs in zip(task.key_encoder.module.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_batch_statistics_of_the_key_network_are_its_own():
    task = build("moco", momentum=0.0)
    train(task, [noise(0)])
    mean, batch = torch.zeros(8), noise(0).images[1]
    var = torch.ones(8)
    conv = build("moco").encoder.body[0]
    F.batch_norm(conv(batch), mean, var, training=True, momentum=0.1)
    torch.testing.assert_close(task.key_encoder.module.body[1].running_mean, mean.detach())
    torch.testing.assert_close(task.key_encoder.module.body[1].running_var, var.detach())


def test_no_gradient_reaches_the_key_network():
    task = build("moco")
    task(batch_for("moco"), CLOCK).loss.backward()
    frozen = [*task.key_encoder.parameters(), *task.key_projector.parameters()]
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in task.projector.parameters())


def test_splits_share_the_batch_in_both_networks_and_shuffling_moves_the_keys():
    task = build("moco", splits=2)
    for net in (task.encoder, task.key_encoder.module):
        assert isinstance(net.body[1], SplitBatchNorm)
    same = noise(0).images[0]
    keys = []
    task.key_encoder.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0]))
    task.train()(views(same, same), CLOCK)
    assert not torch.equal(keys[0], same)
    assert torch.equal(keys[0].sum((1, 2, 3)).sort().values, same.sum((1, 2, 3)).sort().values)


def test_heads_of_both_versions():
    v1, v2 = (MoCo(MoCo.Config(hidden=h, queue_size=8), ConvNet()).projector for h in (0, 32))
    assert [type(m) for m in v1] == [nn.Linear]
    assert [type(m) for m in v2] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(m.bias is not None for m in (v1[0], v2[0], v2[2]))


def test_v1_recipe_jitters_after_graying_and_stronger_in_hue():
    (v1,), (v2,) = (RECIPES[name].method.views for name in ("v1", "paper"))
    assert v1.order.index("grayscale") < v1.order.index("jitter")
    assert v2.order.index("jitter") < v2.order.index("grayscale") < v2.order.index("blur")
    assert (v1.jitter, v1.strength[3], v1.blur) == (1.0, 0.4, 0.0)
    assert (v2.jitter, v2.strength[3], v2.blur) == (0.8, 0.1, 0.5)
    assert not any(r.sync_batch_norm for r in RECIPES.values())


def test_a_queue_that_the_batch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"method\.queue_size: 32 is not a multiple of the 6"):
        train(build("moco"), [noise(b=6)])


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: MoCo compares 2 views, not 1"):
        MoCo(MoCo.Config(views=(View(),)), ConvNet())
