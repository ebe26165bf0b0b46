import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from saccade.nn.norm import SplitBatchNorm, SyncBatchNorm, split, synchronize


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), BatchNormAct2d(4))


@pytest.mark.parametrize("training", [True, False])
def test_synchronized_norm_on_one_rank_is_torchs_to_the_bit(training):
    plain, synced = net().train(training), synchronize(net().train(training))
    x = torch.randn(6, 3, 5, 5)
    assert torch.equal(plain(x), synced(x))
    for k, v in plain.state_dict().items():
        assert torch.equal(v, synced.state_dict()[k])


def test_conversion_keeps_parameters_names_and_activation():
    model = net()
    before, names = list(model.parameters()), list(model.state_dict())
    synchronize(model)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert list(model.state_dict()) == names
    assert [type(model[i]) for i in (1, 3)] == [SyncBatchNorm, SyncBatchNorm]
    assert model(torch.randn(4, 3, 5, 5)).min() == 0  # timm's ReLU is still there


def test_synchronize_leaves_split_norms_alone():
    model = synchronize(split(net(), 2))
    assert [type(model[i]) for i in (1, 3)] == [SplitBatchNorm, SplitBatchNorm]


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
def test_split_norm_normalizes_each_share_by_itself(shape):
    torch.manual_seed(0)
    source = nn.BatchNorm2d(4) if len(shape) == 4 else nn.BatchNorm1d(4)
    with torch.no_grad():
        source.weight.uniform_()
        source.bias.uniform_()
    norm, x = SplitBatchNorm(source, 3), torch.randn(shape)
    weight, bias = norm.weight.detach(), norm.bias.detach()
    y = norm(x)
    means, variances = [], []
    for i in range(3):
        part = x[i::3]
        mean, var = torch.zeros(4), torch.ones(4)
        want = F.batch_norm(part, mean, var, weight, bias, True, 0.1)
        torch.testing.assert_close(y[i::3], want)
        means.append(mean)
        variances.append(var)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))


def test_split_norm_uses_running_statistics_in_evaluation():
    plain, shared = net().eval(), split(net(), 3).eval()
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(plain(x), shared(x))


def test_splits_that_do_not_divide_the_batch_name_the_setting():
    with pytest.raises(ValueError, match="setting splits: 4 does not divide the 6 pictures"):
        split(net(), 4)(torch.randn(6, 3, 5, 5))
