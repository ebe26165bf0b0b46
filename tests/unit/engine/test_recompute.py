"""Activation checkpointing against the plain pass."""

import copy

import pytest
import torch
from torch import nn

from saccade import backbones
from saccade.bench.memory import peak
from saccade.engine.recompute import recompute
from saccade.recipe import BackboneConfig


def built(name, size=32, **settings):
    torch.manual_seed(0)
    cfg = BackboneConfig(name=name, image_size=size, **settings)
    return nn.ModuleDict({"encoder": backbones.create(cfg)}).train()


def gradients(task, x):
    torch.manual_seed(1)  # drop path draws from here
    task.zero_grad()
    task["encoder"](x).square().mean().backward()
    return {k: p.grad.clone() for k, p in task.named_parameters() if p.grad is not None}


NETWORKS = [  # and what is left of the memory, which the widest block decides
    ("vit_atto_patch4_32", 32, 0.6),
    ("swin_pico_patch4_window4_64", 64, 0.9),
    ("convnext_atto", 64, 0.9),
]


@pytest.mark.parametrize(("name", "size", "share"), NETWORKS)
def test_gradients_stay_and_memory_falls(name, size, share):
    task, x = built(name, size, drop_path=0.3), torch.randn(8, 3, size, size)
    thrifty = copy.deepcopy(task)
    recompute(thrifty)
    assert type(thrifty["encoder"]) is type(task["encoder"])
    assert list(thrifty.state_dict()) == list(task.state_dict())
    torch.testing.assert_close(gradients(thrifty, x), gradients(task, x), rtol=0, atol=0)
    x = torch.randn(16, 3, size, size)
    less, more = (peak(lambda t=t: t["encoder"](x).mean().backward()) for t in (thrifty, task))
    assert less < share * more


def test_a_copy_is_a_network_of_its_own():
    task, x = built("vit_atto_patch4_32"), torch.randn(2, 3, 32, 32)
    recompute(task)
    other = copy.deepcopy(task)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert task["encoder"](x).abs().sum() > 0
    assert not other["encoder"](x).any()


def test_what_does_not_train_is_left_alone():
    task = built("vit_atto_patch4_32")
    block = type(task["encoder"].net.blocks[0])
    task["encoder"].net.blocks[0].requires_grad_(False)
    recompute(task)
    assert type(task["encoder"].net.blocks[0]) is block
    assert type(task["encoder"].net.blocks[1]) is not block


@pytest.mark.parametrize("name", ["resnet10_w16"])
def test_networks_that_count_batches_are_refused(name):
    with pytest.raises(ValueError, match=r"engine.activation_checkpointing: .* set it to false"):
        recompute(built(name))
