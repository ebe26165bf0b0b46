import pytest
import torch

from saccade.attention import DisentangledNonLocal
from saccade.attention.disentangled_non_local import whitened


def block(channels=6, **settings):
    torch.manual_seed(0)
    made = DisentangledNonLocal(channels, **settings).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made


def pictures(*size):
    torch.manual_seed(1)
    return torch.randn(*(size or (2, 6, 3, 4)), dtype=torch.double)


@pytest.mark.parametrize("whiten", ["channel", "scalar", "none"])
def test_equals_the_equation_written_as_loops(whiten):
    made, x = block(whiten=whiten, temperature=0.3), pictures(1, 6, 2, 3)
    y = x[0].flatten(1).T  # [N, C]
    q, k, v, m = (layer(y) for layer in (made.query, made.key, made.value, made.mask))
    if whiten == "channel":
        q, k = q - q.mean(0), k - k.mean(0)
    elif whiten == "scalar":
        q, k = q - q.mean(), k - k.mean()
    u = m[:, 0].exp() / m[:, 0].exp().sum()
    rows = []
    for i in range(6):
        e = torch.stack([(q[i] @ k[j] / 3**0.5 / 0.3).exp() for j in range(6)])
        pair = sum(e[j] / e.sum() * v[j] for j in range(6))
        rows.append(y[i] + made.gamma * pair + sum(u[j] * v[j] for j in range(6)))
    torch.testing.assert_close(made(x)[0].flatten(1).T, torch.stack(rows))


def test_a_softmax_of_dots_is_the_pairwise_part_times_the_unary_part():
    q, k = torch.randn(2, 2, 7, 5, dtype=torch.double)
    pair = (whitened(q, "channel") @ whitened(k, "channel").mT).softmax(-1)
    unary = (q.mean(1, keepdim=True) @ k.mT).exp()
    product = pair * unary
    product = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(product, (q @ k.mT).softmax(-1), rtol=1e-12, atol=1e-12)


def test_whitening_by_channel_leaves_no_common_part_and_by_one_number_leaves_most():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 50, 8, dtype=torch.double) + torch.randn(2, 1, 1, 8)
    left = {
        w: (whitened(q, w) @ whitened(k, w).mT).mean(1).abs().max()
        for w in ("channel", "scalar", "none")
    }
    assert left["channel"] < 1e-13
    assert left["scalar"] > 0.5 * left["none"]


def test_a_constant_added_to_all_queries_or_keys_changes_nothing():
    made, x = block(), pictures()
    before = made.attention(x)
    with torch.no_grad():
        made.query.bias.add_(3)
        made.key.bias.sub_(2)
    torch.testing.assert_close(made.attention(x), before)


def test_biases_of_queries_and_keys_get_no_gradient():
    made = block()
    made(pictures()).pow(3).sum().backward()
    assert made.query.bias.grad.abs().max() < 1e-10
    assert made.key.bias.grad.abs().max() < 1e-10
    assert made.query.weight.grad.abs().max() > 1e-3


def test_rows_of_both_parts_sum_to_one():
    made, x = block(), pictures()
    torch.testing.assert_close(made.attention(x).sum(-1), torch.ones(2, 12).double())
    torch.testing.assert_close(made.unary(x).sum(-1), torch.ones(2).double())


def test_without_the_gate_the_same_is_added_everywhere():
    made, x = DisentangledNonLocal(6).double(), pictures()
    with torch.no_grad():
        added = (made(x) - x).flatten(2)
    assert added.abs().max() > 0
    torch.testing.assert_close(added, added[..., :1].expand_as(added))


def test_a_constant_map_attends_evenly():
    made, x = block(), pictures(1, 6, 1, 1).expand(1, 6, 3, 3)
    rows = made.attention(x)
    torch.testing.assert_close(rows, torch.full_like(rows, 1 / 9))
    value = made.value(x[..., 0, 0]) * (1 + made.gamma)
    torch.testing.assert_close((made(x) - x)[..., 2, 1], value)


def test_a_high_temperature_averages():
    made, x = block(temperature=1e12), pictures()
    rows = made.attention(x)
    torch.testing.assert_close(rows, torch.full_like(rows, 1 / 12))


def test_rows_of_logits_beyond_half_precision_stay_numbers_in_it():
    made, x = block().float(), 100 * pictures().float()
    q, k = made.pair(x)
    assert (q @ k.mT * made.scale).max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        found = made.attention(x), made.look(x, torch.arange(12))["pairwise"].flatten(1, 2)
    for rows in found:
        torch.testing.assert_close(rows.flatten(2).sum(-1), torch.ones(2, 12))


def test_permuted_positions_give_permuted_outputs():
    made, x, order = block(), pictures(), torch.randperm(12)
    shuffled = x.flatten(2)[..., order].unflatten(2, (3, 4))
    torch.testing.assert_close(made(shuffled).flatten(2), made(x).flatten(2)[..., order])


def test_gradients_are_those_of_differences():
    made, x = block(4, temperature=0.5), pictures(1, 4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(made, (x,))


def test_weights_start_as_in_the_official_code():
    torch.manual_seed(0)
    made = DisentangledNonLocal(256)
    for layer in (made.query, made.key, made.value, made.mask):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert layer.bias is None or not layer.bias.any()
    assert made.value.bias is None
    assert not made.gamma.any()


def test_the_gate_is_of_the_pairwise_part_alone():
    made, x = block(), pictures()
    with torch.no_grad():
        added = []
        for gate in (0.0, 1.0, 3.0):
            made.gamma.fill_(gate)
            added.append(made(x) - x)
    v = made.value(x.flatten(2).mT)
    pair = (made.attention(x) @ v).mT.unflatten(2, x.shape[2:])
    torch.testing.assert_close(added[1] - added[0], pair)
    torch.testing.assert_close(added[2] - added[0], 3 * pair)
