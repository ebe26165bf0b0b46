"""LambdaResNets: ResNets with lambda layers in place of 3x3 convolutions.

Bello 2021, arXiv:2102.08602. `lambda_resnet50` is the network of the paper's ablations: all 16
convolutions of a plain ResNet-50, scope 23. `lambda_resnetrs50` to `420` are the hybrids on timm's
ResNet-RS: the last stage and, of the one before, the paper's table of units, taken to count from 0
(unit 3 of 50's, every fifth of 152's); the other units have squeeze-and-excitation.
A strided unit averages 3x3 with stride 2 behind the layer (timm 2x2). The public count of
14,995,848 parameters for the first has a bias in each position convolution, 16 x 16 numbers, which
the paper's equation lacks and which are not here. The paper's count for hybrids was not reached:
67.2 million for 152, 50.3 without timm's gates, where the paper has 51.4; timm's are a quarter of
the unit's output wide. Left out: the variants whose last stage is convolutional.
"""

from __future__ import annotations

from typing import Any

from timm.models.resnet import ResNet
from torch import nn

from ..attention import LambdaLayer, LocalLambda


def alter(net: ResNet, *, scope: int, units: tuple[tuple[int, ...], ...]) -> None:
    """Replace the second convolution of the units of each stage, counted from 0."""
    for i, chosen in enumerate(units):
        for j in chosen:
            unit: Any = net.get_submodule(f"layer{i + 1}.{j}")
            unit.conv2, unit.se = _lambda(unit.conv2, scope), None


def _lambda(old: Any, scope: int) -> nn.Module:
    layer = LambdaLayer(old.in_channels, old.out_channels, LocalLambda(scope))
    if old.stride[0] == 1:
        return layer
    return nn.Sequential(layer, nn.AvgPool2d(3, old.stride[0], 1))
