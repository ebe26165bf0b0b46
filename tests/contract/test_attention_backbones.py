"""Networks with attention train under a method of two views and under one with a teacher."""

import copy
import dataclasses
import typing

import pytest
import torch
import toys
from torch import nn
from toys import CLOCK, SMALL, batch_for, noise, train

from saccade import attention, backbones, methods
from saccade.core import Backbone, Mechanism, Method
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


class Attentive(Backbone):
    """All mechanisms on maps, one behind the other."""

    dim, channels, image_size = 16, 3, 32

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(attention.NonLocal(8), attention.DisentangledNonLocal(8)),
            attention.GlobalContext(8, ratio=2),
            *(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            attention.LocalRelation(16, kernel=3),
            attention.LambdaLayer(16, 16, attention.LocalLambda(3)),
            nn.BatchNorm2d(16),
        )

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.features(x).mean((2, 3))


def takes_any_backbone(name):
    (base,) = (b for b in methods.get(name).__orig_bases__ if typing.get_origin(b) is Method)
    return typing.get_args(base) == (Backbone,)


TOKENS = {"mst", "simmim"}  # a ViT or a Swin
ANY = [n for n in methods.names() if takes_any_backbone(n) and n not in TOKENS]


@pytest.mark.parametrize("method", ANY)
def test_every_method_of_any_backbone_trains_all_mechanisms(method, monkeypatch):
    monkeypatch.setattr(toys, "ConvNet", Attentive)
    task = toys.build(method).train()
    assert isinstance(task.encoder, Attentive)
    loss = task(batch_for(method), CLOCK).loss
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in task.encoder.named_parameters() if p.grad is None] == []


def test_most_methods_take_any_backbone():
    assert {"simclr", "moco", "byol", "dino", "swav", "pixpro", "vicreg"} <= set(ANY)
