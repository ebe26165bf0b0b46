"""Networks with attention train under a method of two views and under one with a teacher."""

import copy
import dataclasses

import pytest
import torch
from toys import CLOCK, SMALL, noise, train

from saccade import attention, backbones, methods
from saccade.core import Mechanism
from saccade.nn.parts import Ema
from saccade.recipe import BackboneConfig

SIZE = 16
NAMES = (
    "dnl_resnet10_w32",
    "gc_resnet10_w32",
    "lambda_resnet10_w32",
    "lr_net14_w16",
    "nl_resnet10_w32",
)


def build(method, backbone):
    torch.manual_seed(0)
    cls = methods.get(method)
    known = {f.name for f in dataclasses.fields(cls.Config)}
    cfg = cls.Config(**{k: v for k, v in SMALL.items() if k in known})
    return cls(cfg, backbones.create(BackboneConfig(name=backbone, image_size=SIZE, stem="small")))


def batch(seed=0):
    return noise(seed, 4, (SIZE, SIZE))


def test_every_mechanism_on_maps_is_here():
    nets = [build("simclr", n).encoder for n in NAMES]
    found = {type(m) for net in nets for m in net.modules() if isinstance(m, Mechanism)}
    every = [getattr(attention, n) for n in attention.__all__]
    assert found == {c for c in every if issubclass(c, Mechanism)}


@pytest.mark.parametrize("backbone", NAMES)
@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_the_network_and_its_attention_learn(method, backbone):
    task = build(method, backbone).train()
    task(batch(), CLOCK).loss.backward()
    assert [n for n, p in task.encoder.named_parameters() if p.grad is None] == []
    task.zero_grad(set_to_none=True)
    before = copy.deepcopy(task)
    train(task, [batch(i) for i in range(3)])
    layers = [n for n, m in task.encoder.named_modules() if isinstance(m, Mechanism)]
    assert layers
    for name in layers:
        old, new = (t.encoder.get_submodule(name).parameters() for t in (before, task))
        assert any(not torch.equal(a, b) for a, b in zip(old, new, strict=True)), name
    teachers = [m.module for m in task.modules() if isinstance(m, Ema)]
    assert bool(teachers) == (method == "byol")
    for module, old in zip(
        teachers, (m for m in before.modules() if isinstance(m, Ema)), strict=True
    ):
        pairs = zip(module.parameters(), old.module.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("backbone", NAMES)
@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_its_state_restores_the_exact_next_step(method, backbone):
    task, other = build(method, backbone), build(method, backbone)
    train(task, [batch(i) for i in range(2)])
    other.load_state_dict(task.state_dict())
    assert train(task, [batch(2)]) == train(other, [batch(2)])
