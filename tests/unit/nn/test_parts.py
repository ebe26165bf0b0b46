import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from saccade.nn.parts import Bank, Ema, Queue, biasless_mlp, last_place, mlp, without_drop_path


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


def test_biasless_mlp_ends_in_a_plain_layer_or_a_norm_without_weights():
    torch.manual_seed(0)
    plain, normed = (biasless_mlp(4, 8, 6, 2, last_norm=n) for n in (False, True))
    layers = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    assert [type(m) for m in plain] == layers
    assert [type(m) for m in normed] == [*layers, nn.BatchNorm1d]
    assert all(m.bias is None for m in plain if isinstance(m, nn.Linear))
    y = normed(torch.randn(64, 4))
    torch.testing.assert_close(y.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert list(normed[-1].parameters()) == []


def test_bank_starts_with_rows_of_length_about_one_and_all_directions():
    torch.manual_seed(0)
    rows = Bank(500, 128).rows
    assert rows.norm(dim=1).mean().item() == pytest.approx(1, abs=0.01)
    assert rows.abs().max() <= (3 / 128) ** 0.5
    assert rows.mean().abs() < 0.002


def test_bank_moves_the_rows_of_the_batch_and_no_others():
    torch.manual_seed(0)
    bank, x, index = Bank(6, 4), F.normalize(torch.randn(2, 4), dim=1), torch.tensor([4, 1])
    before = bank.rows.clone()
    bank.update(index, x, 0.3)
    for i, v in zip(index.tolist(), x, strict=True):
        mixed = [0.3 * float(a) + 0.7 * float(b) for a, b in zip(before[i], v, strict=True)]
        length = sum(a * a for a in mixed) ** 0.5
        assert bank.rows[i].tolist() == pytest.approx([a / length for a in mixed], rel=1e-5)
    rest = [0, 2, 3, 5]
    assert torch.equal(bank.rows[rest], before[rest])


def test_a_row_that_equals_its_feature_stays():
    bank, v = Bank(3, 4), F.normalize(torch.randn(1, 4), dim=1)
    bank.rows[2] = v[0]
    bank.update(torch.tensor([2]), v, 0.5)
    torch.testing.assert_close(bank.rows[2], v[0])


def test_of_an_image_twice_in_the_batch_the_last_counts():
    x = F.normalize(torch.randn(3, 4), dim=1)
    assert last_place(torch.tensor([5, 2, 5])).tolist() == [2, 1, 2]
    bank = Bank(6, 4)
    bank.update(torch.tensor([5, 2, 5]), x, 0.0)
    torch.testing.assert_close(bank.rows[[5, 2]], x[[2, 1]])


def test_a_bank_without_rows_names_the_setting():
    with pytest.raises(ValueError, match=r"method\.images: 0; give the number of pictures"):
        Bank(0, 4)


def test_without_drop_path_passes_everything_in_training_mode():
    torch.manual_seed(0)
    net = nn.Sequential(DropPath(0.9)).train()
    x = torch.ones(64, 2)
    assert not torch.equal(net(x), x)
    assert torch.equal(without_drop_path(net)(x), x)
