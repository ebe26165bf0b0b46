"""What necks make of an encoder's maps."""

import torch
import torch.nn.functional as F

from saccade import backbones
from saccade.detector.necks import Pyramid, TransformerPyramid, pyramid
from saccade.recipe import BackboneConfig


def encoder():
    torch.manual_seed(0)
    return backbones.create(BackboneConfig(name="resnet10_w16", image_size=64, stem="paper"))


def test_a_transformer_pyramid_has_the_maps_of_a_pyramid():
    net, x = encoder(), torch.randn(2, 3, 64, 96)
    fpn, fpt = (kind(net, 8, batch_norm=True) for kind in (Pyramid, TransformerPyramid))
    a, b = fpn(net, x), fpt(net, x)
    assert fpn.strides == fpt.strides
    assert a.keys() == b.keys()
    assert [y.shape for y in a.values()] == [y.shape for y in b.values()]


def test_a_transformer_pyramid_is_laterals_transformer_and_pooling():
    net, x = encoder().eval(), torch.randn(1, 3, 64, 64)
    neck = TransformerPyramid(net, 8, batch_norm=False).eval()
    maps = [
        F.conv2d(y, lateral[0].weight, lateral[0].bias)
        for y, lateral in zip(pyramid(net, x, 4), neck.lateral, strict=True)
    ]
    want = neck.fpt(maps)
    *found, last = neck(net, x).values()
    for y, other in zip(found, want, strict=True):
        torch.testing.assert_close(y, other)
    assert torch.equal(last, found[-1][:, :, ::2, ::2])
