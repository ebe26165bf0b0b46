import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, PatchNet, Pixels, batch_for, build, noise, train, views

from saccade.core import Clock, View
from saccade.methods.moco_v3 import RECIPES, MoCoV3
from saccade.nn.parts import Ema
from saccade.nn.positions import sincos_2d


def moco_v3(temperature=0.2, dim=12):
    """Queries and keys are the pictures themselves."""
    task = MoCoV3(MoCoV3.Config(hidden=4, dim=dim, temperature=temperature), Pixels(dim))
    task.projector, task.predictor = nn.Identity(), nn.Identity()
    task.teacher_projector = Ema(nn.Identity())
    return task


def small_vit(**settings):
    torch.manual_seed(0)
    cfg = MoCoV3.Config(hidden=16, dim=8, momentum=0.9, **settings)
    return MoCoV3(cfg, PatchNet())


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_equals_the_equation_written_as_loops(temperature):
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 2, 2).unbind()
    p, r = F.normalize(a.flatten(1), dim=1), F.normalize(b.flatten(1), dim=1)
    total = 0.0
    for q, k in ((p, r), (r, p)):
        for i in range(5):
            e = [math.exp(float(q[i] @ k[j]) / temperature) for j in range(5)]
            total -= 2 * temperature * math.log(e[i] / sum(e)) / 5
    loss = moco_v3(temperature)(views(a, b), CLOCK).loss
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_equal_embeddings_give_the_log_of_the_batch(temperature):
    x = torch.ones(64, 1, 1, 2)
    found = moco_v3(temperature, dim=2)(views(x, x), CLOCK).loss.item()
    assert found == pytest.approx(4 * temperature * math.log(64), rel=1e-5)


def test_permuting_the_batch_changes_nothing():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 2, 2).unbind()
    order = torch.randperm(5)
    losses = [moco_v3()(views(x, y), CLOCK).loss for x, y in ((a, b), (a[order], b[order]))]
    torch.testing.assert_close(*losses)


def test_gradient_reaches_the_queries_only():
    torch.manual_seed(0)
    a, b = (x.requires_grad_() for x in torch.randn(2, 5, 3, 2, 2).unbind())
    (found,) = torch.autograd.grad(moco_v3()(views(a, b), CLOCK).loss, a)
    q, k = F.normalize(a.flatten(1), dim=1), F.normalize(b.flatten(1), dim=1).detach()
    (wanted,) = torch.autograd.grad(0.4 * F.cross_entropy(q @ k.T / 0.2, torch.arange(5)), a)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_keys_at_the_limits_of_momentum(momentum):
    task = build("moco_v3", momentum=momentum)
    start = copy.deepcopy(task.encoder)
    task.train()(batch_for("moco_v3"), CLOCK)
    with torch.no_grad():
        task.encoder.body[0].weight.add_(1)
    task.after_update(Clock(0, 10**9, 5))
    source = start if momentum else task.encoder
    for mine, theirs in zip(task.teacher.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_momentum_of_the_next_step_moves_the_keys():
    task = build("moco_v3", momentum=0.9)
    with torch.no_grad():
        task.encoder.body[0].weight.fill_(1.0)
        task.teacher.module.body[0].weight.fill_(0.0)
    task.after_update(Clock(3, 8, 5))
    m = 1 - 0.5 * (1 + math.cos(math.pi * 4 / 8)) * (1 - 0.9)
    assert task.teacher.module.body[0].weight[0, 0, 0, 0].item() == pytest.approx(1 - m)


def test_patches_are_embedded_by_a_layer_that_never_moves():
    task = small_vit()
    before = copy.deepcopy(task.encoder)
    train(task, [noise(i) for i in range(2)])
    assert torch.equal(task.encoder.embed.weight, before.embed.weight)
    assert torch.equal(task.encoder.table, sincos_2d((4, 4), 16))
    assert not torch.equal(task.encoder.cls_token, before.cls_token)
    grouped = {id(p) for g in task.groups() for _, p in g.params}
    assert id(task.encoder.embed.weight) not in grouped  # so it does not decay either
    assert small_vit(freeze_patches=False).encoder.embed.weight.requires_grad


def test_a_transformer_starts_with_xavier_draws_and_q_k_v_apart():
    task = small_vit()
    bounds = {
        (48, 16): math.sqrt(6 / (16 + 16)),  # queries, keys and values: three of 16 x 16
        (32, 16): math.sqrt(6 / (16 + 32)),
    }
    for layer in task.encoder.modules():
        if isinstance(layer, nn.Linear) and tuple(layer.weight.shape) in bounds:
            bound = bounds[tuple(layer.weight.shape)]
            assert 0.95 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()
    pixels = task.encoder.embed.weight
    assert 0.95 * math.sqrt(6 / (192 + 16)) < pixels.abs().max() <= math.sqrt(6 / (192 + 16))


def test_heads_of_transformers_and_resnets():
    vit, resnet = (
        MoCoV3(replace(RECIPES[n].method, hidden=8, dim=4), ConvNet()) for n in ("paper", "resnet")
    )

    def kinds(head):
        return [type(m).__name__ for m in head]

    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds(vit.projector) == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert kinds(vit.predictor) == [*hidden, "Linear", "BatchNorm1d"]
    assert kinds(resnet.projector) == [*hidden, "Linear", "BatchNorm1d"]
    assert kinds(resnet.predictor) == [*hidden, "Linear"]
    assert vit.projector[-1].weight is None
    assert all(m.bias is None for m in vit.modules() if isinstance(m, nn.Linear))


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: MoCoV3 compares 2 views, not 1"):
        MoCoV3(MoCoV3.Config(views=(View(),)), ConvNet())
