import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from saccade.nn.parts import Ema, Queue, mlp, without_drop_path


def test_mlp_puts_biases_only_where_no_norm_follows():
    kinds = [(type(m), m.bias is not None) for m in mlp(4, 8, 2) if hasattr(m, "bias")]
    assert kinds == [(nn.Linear, False), (nn.BatchNorm1d, True), (nn.Linear, True)]
    assert [type(m) for m in mlp(4, 8, 2, norm="none")] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [type(m) for m in mlp(4, 2, norm="none")] == [nn.Linear]


def test_last_norm_of_mlp_scales_and_does_not_shift():
    head = mlp(4, 8, 2, norm="all")
    assert head[-1].bias is None
    assert head[-1].weight.shape == (2,)
    assert head[3].bias is None
    torch.testing.assert_close(head(torch.randn(64, 4)).mean(0), torch.zeros(2), atol=1e-6, rtol=0)


def test_ema_moves_parameters_by_the_share_and_keeps_its_own_buffers():
    torch.manual_seed(0)
    source = nn.BatchNorm1d(3)
    ema = Ema(source)
    with torch.no_grad():
        source.weight.copy_(torch.tensor([2.0, 3.0, 4.0]))
        source.running_mean.fill_(7)
    ema.update(source, 0.9)
    assert ema.module.weight.tolist() == pytest.approx([1.1, 1.2, 1.3])
    assert ema.module.running_mean.tolist() == [0, 0, 0]


def test_ema_at_its_limits_stays_or_copies_to_the_bit():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    ema = Ema(a)
    ema.update(b, 1.0)
    assert torch.equal(ema.module.weight, a.weight)
    ema.update(b, 0.0)
    assert torch.equal(ema.module.weight, b.weight)


def test_ema_gives_no_gradient():
    ema = Ema(nn.Linear(3, 3))
    x = torch.randn(2, 3, requires_grad=True)
    assert not ema(x).requires_grad
    assert not any(p.requires_grad for p in ema.parameters())


def test_queue_starts_with_unit_rows_and_overwrites_the_oldest():
    queue = Queue(6, 4)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(6))
    pushed = F.normalize(torch.randn(4, 2, 4), dim=-1)
    for rows in pushed:
        queue.push(rows)
    assert torch.equal(queue.rows, torch.cat([pushed[3], pushed[1], pushed[2]]))
    assert queue.head.item() == 4 * 2 % 6


def test_queue_that_the_batch_does_not_divide_names_the_setting():
    with pytest.raises(ValueError, match=r"method\.queue_size: 10 .* 4 keys .* choose 8"):
        Queue(10, 2).push(torch.ones(4, 2))


def test_without_drop_path_passes_everything_in_training_mode():
    torch.manual_seed(0)
    net = nn.Sequential(DropPath(0.9)).train()
    x = torch.ones(64, 2)
    assert not torch.equal(net(x), x)
    assert torch.equal(without_drop_path(net)(x), x)
