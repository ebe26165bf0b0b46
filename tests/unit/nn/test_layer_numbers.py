"""Layers of parameters against timm's own groups."""

import pytest
from timm.models import group_parameters

from saccade import backbones
from saccade.backbones.timm_state import timm_net
from saccade.nn.layers import numbered
from saccade.recipe import BackboneConfig


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 32), ("vit_nano_patch8_64", 16), ("beit_nano_shared_patch8_64", 16)],
)
def test_layers_are_timms(name, size):
    net = timm_net(backbones.create(BackboneConfig(name=name, image_size=size)))
    found = numbered(n for n, _ in net.named_parameters())
    theirs = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    last = {n for n in found if n.startswith("norm.")}  # MAE's code: one more; timm: the last block
    assert {n: k - (n in last) for n, k in found.items()} == theirs


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_layers_of_staged_networks_grow_block_by_block(name):
    """timm puts what stands between stages elsewhere."""
    net = timm_net(backbones.create(BackboneConfig(name=name, image_size=224)))
    found = numbered(n for n, _ in net.named_parameters())
    blocks = [layer for name, layer in found.items() if "blocks." in name]
    assert blocks == sorted(blocks)
    stem = [layer for name, layer in found.items() if name.startswith(("stem", "patch_embed"))]
    assert set(stem) == {0}
    assert max(found.values()) == found[list(found)[-1]] == max(blocks) + 1


def test_a_network_without_blocks_is_one_layer():
    assert numbered(["a.weight", "b.weight"]) == {"a.weight": 0, "b.weight": 0}
