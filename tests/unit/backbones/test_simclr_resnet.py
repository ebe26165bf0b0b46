"""SimCLR v2's networks: published sizes, and what selective kernels do."""

import pytest
import torch
from torch import nn

from saccade import backbones
from saccade.backbones.simclr_resnet import SelectiveKernels
from saccade.recipe import BackboneConfig

MILLIONS = {  # the table of arXiv:2006.10029, encoder alone, with the statistics of batch norm
    "resnet50": 24,
    "resnet50_x1_sk": 35,
    "resnet50_x2": 94,
    "resnet50_x2_sk": 140,
    "resnet101": 43,
    "resnet101_x1_sk": 65,
    "resnet101_x2": 170,
    "resnet101_x2_sk": 257,
    "resnet152": 58,
    "resnet152_x1_sk": 89,
    "resnet152_x2": 233,
    "resnet152_x2_sk": 354,
    "resnet152_x3_sk": 795,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        net = backbones.create(BackboneConfig(name=name))
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, net.dim)
    numbers = sum(v.numel() for k, v in net.state_dict().items() if not k.endswith("tracked"))
    assert round(numbers / 1e6) == MILLIONS[name]
    width = int(name.partition("_x")[2][:1] or 1)
    assert net.dim == 2048 * width


def test_equal_branches_give_their_mean_and_shares_sum_to_1():
    torch.manual_seed(0)
    layer = SelectiveKernels(8, 16, 1).eval()
    x = torch.randn(2, 8, 5, 5)
    y = layer.act(layer.bn(layer.conv(x))).unflatten(1, (2, 16))
    torch.testing.assert_close(layer.shares(y).sum(1), torch.ones(2, 16, 1, 1))
    nn.init.zeros_(layer.select.weight)
    torch.testing.assert_close(layer(x), y.mean(1))


def test_it_is_the_equation():
    torch.manual_seed(0)
    layer = SelectiveKernels(8, 16, 2).eval()
    x = torch.randn(2, 8, 6, 6)
    y1, y2 = layer.act(layer.bn(layer.conv(x))).chunk(2, 1)
    s = (y1 + y2).mean((2, 3))
    inner = (s @ layer.squeeze[0].weight[:, :, 0, 0].T) / (1 + layer.squeeze[1].eps) ** 0.5
    a, b = (inner.relu() @ layer.select.weight[:, :, 0, 0].T).chunk(2, 1)
    share = a.exp() / (a.exp() + b.exp())
    want = share[..., None, None] * y1 + (1 - share)[..., None, None] * y2
    torch.testing.assert_close(layer(x), want)
    assert want.shape == (2, 16, 3, 3)


@pytest.mark.parametrize(("width", "inner"), [(64, 32), (512, 32), (528, 33), (1024, 64)])
def test_the_squeeze_has_a_16th_of_the_channels_but_32_at_least(width, inner):
    with torch.device("meta"):
        assert SelectiveKernels(8, width, 1).squeeze[0].out_channels == inner


def test_the_small_stem_widens_too():
    with torch.device("meta"):
        net = backbones.create(BackboneConfig(name="resnet50_x2", image_size=32))
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 4096)
    assert (net.net.conv1.kernel_size, net.net.conv1.out_channels) == ((3, 3), 128)
