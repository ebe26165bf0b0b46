"""SimCLR v2's ResNets: wide ones, and ones with selective kernels.

Chen et al. 2020, arXiv:2006.10029; selective kernels: Li et al. 2019, arXiv:1903.06586, as there.
Two branches of a 3x3 convolution, y_1 and y_2, each behind batch norm and ReLU, are mixed channel
by channel: with s = mean over positions of y_1 + y_2,
    y = a y_1 + (1 - a) y_2,   (a, 1 - a) = softmax over the branches of W2 relu(BN(W1 s)),
W1 to max(int(F / 16), 32) channels of F. Networks with them have ResNet-D's stem of three
convolutions and mean-pooled shortcuts. timm's skresnets have another stem and reduction.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from timm.models.resnet import ResNet
from torch import Tensor, nn

RATIO, FLOOR = 16, 32
BRANCHES = 2


class SelectiveKernels(nn.Module):
    """In place of a 3x3 convolution, its norm and its activation."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner = max(width // RATIO, FLOOR)
        self.conv = nn.Conv2d(channels, BRANCHES * width, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(BRANCHES * width)
        self.act = nn.ReLU(inplace=True)
        self.squeeze = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True)
        )
        self.select = nn.Conv2d(inner, BRANCHES * width, 1, bias=False)
        for conv in (self.conv, self.squeeze[0], self.select):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as timm's

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        branches = self.act(self.bn(self.conv(x))).unflatten(1, (BRANCHES, -1))  # [B, 2, F, h, w]
        return (branches * self.shares(branches)).sum(1)

    def shares(self, branches: Float[Tensor, "b 2 f h w"]) -> Float[Tensor, "b 2 f 1 1"]:
        """How much of each branch, channel by channel."""
        mean = branches.sum(1).mean((2, 3), keepdim=True)  # [B, F, 1, 1]
        return self.select(self.squeeze(mean)).unflatten(1, (BRANCHES, -1)).softmax(1)


def alter(net: ResNet, *, width: int, selective: bool) -> None:
    """Widen timm's plain stem, which has 64 channels whatever follows, and put the kernels in."""
    old: Any = net.conv1
    if isinstance(old, nn.Conv2d) and width > 1:
        _widen(net, old, 64 * width)
    if not selective:
        return
    for i in range(1, 5):
        for unit in net.get_submodule(f"layer{i}").children():
            _select(unit)


def _widen(net: Any, old: nn.Conv2d, channels: int) -> None:
    size, stride, padding = old.kernel_size[0], old.stride[0], int(old.padding[0])
    net.conv1 = nn.Conv2d(old.in_channels, channels, size, stride, padding, bias=False)
    net.bn1 = nn.BatchNorm2d(channels)
    first = net.layer1[0]
    first.conv1 = nn.Conv2d(channels, first.conv1.out_channels, 1, bias=False)
    first.downsample[0] = nn.Conv2d(channels, first.downsample[0].out_channels, 1, bias=False)
    for conv in (net.conv1, first.conv1, first.downsample[0]):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as timm's


def _select(unit: Any) -> None:
    conv = unit.conv2
    unit.conv2 = SelectiveKernels(conv.in_channels, conv.out_channels, conv.stride[0])
    unit.bn2, unit.act2 = nn.Identity(), nn.Identity()
