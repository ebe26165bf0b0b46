"""LR-Nets: ResNets whose 3x3 and 7x7 convolutions are local relation layers.

Hu et al. 2019, arXiv:1904.11491. A bottleneck is 1x1 convolution, local relation and its 1x1
transform, 1x1 convolution, each with batch norm; the stem is a 1x1 convolution and a local
relation layer of stride 2, then max pooling. No code of the networks was published: widths of 100,
200, 400, 800 with the transform inside come nearest to the parameters that the paper gives (14.6
and 23.4 million beside 14.7 and 23.3), at fewer operations (2.3 and 4.0 beside 2.6 and 4.3 GMAC).
Groups are of 8 channels, of 10 where 8 does not divide. With the small stem the stem is its 3x3
convolution. Compare at equal operations, not at equal time.
"""

from __future__ import annotations

from typing import Any

from timm.models.resnet import ResNet
from torch import nn

from ..attention import LocalRelation


def alter(net: ResNet, *, kernels: tuple[int, ...], groups: tuple[int, ...]) -> None:
    """Replace the spatial convolutions; `kernels` and `groups` are those of each stage."""
    for i, (kernel, group) in enumerate(zip(kernels, groups, strict=True)):
        for unit in net.get_submodule(f"layer{i + 1}").children():
            unit.conv2 = _relation(unit.conv2, kernel, group)
    if not isinstance(net.maxpool, nn.Identity):
        old: Any = net.conv1
        point = _point(old.in_channels, old.out_channels)
        net.conv1 = nn.Sequential(point, LocalRelation(old.out_channels, stride=2))


def _relation(old: Any, kernel: int, group: int) -> nn.Sequential:
    width = old.in_channels
    layer = LocalRelation(width, kernel=kernel, group=group, stride=old.stride[0])
    return nn.Sequential(layer, _point(width, old.out_channels))


def _point(channels: int, out: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as timm's
    return conv
