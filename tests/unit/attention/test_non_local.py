import math

import pytest
import torch

from saccade.attention import NonLocal

PAIRINGS = ["gaussian", "embedded_gaussian", "scaled_gaussian", "dot_product", "concatenation"]
SOFTMAX = PAIRINGS[:3]


@pytest.fixture(params=PAIRINGS)
def pairing(request):
    return request.param


def open_block(pairing, channels=6, **settings):
    """A block in float64 whose weights are of order 1 and whose last norm lets all through."""
    torch.manual_seed(0)
    block = NonLocal(channels, pairing=pairing, **settings).double().eval()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return block


def by_loops(block, pairing, x, keys):
    """y of one picture, x [C, N] and keys [C, M], from the table of the paper."""
    x, keys = x.T, keys.T
    q, k, v = block.theta(x), block.phi(keys), block.g(keys)
    rows = []
    for i in range(len(q)):
        f = []
        for j in range(len(k)):
            dot = float(q[i] @ k[j])
            if pairing == "concatenation":
                pair = torch.cat([q[i], k[j]])
                f.append(max(0.0, float(block.pair.weight[0] @ pair)))
            elif pairing == "dot_product":
                f.append(dot)
            else:
                f.append(math.exp(dot / (math.sqrt(3) if pairing == "scaled_gaussian" else 1)))
        total = sum(f) if pairing in SOFTMAX else len(k)
        rows.append(sum(w * v[j] for j, w in enumerate(f)) / total)
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["none", "input"])
@torch.no_grad()
def test_equals_the_equation_written_as_loops(pairing, pool):
    block, x = open_block(pairing, pool=pool), torch.randn(1, 6, 5, 4, dtype=torch.double)
    keys = torch.nn.functional.max_pool2d(x, 2) if pool == "input" else x
    y = by_loops(block, pairing, x[0].flatten(1), keys[0].flatten(1))
    norm = block.norm
    z = block.out(y) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(block(x)[0].flatten(1).T, x[0].flatten(1).T + z)


def test_the_maps_times_the_values_are_what_the_block_adds(pairing):
    block, x = open_block(pairing, norm=False), torch.randn(2, 6, 3, 3, dtype=torch.double)
    y = block.attention(x) @ block.g(x.flatten(2).mT)
    torch.testing.assert_close((block(x) - x).flatten(2).mT, block.out(y))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_starts_as_the_identity(pairing, norm, training):
    x = torch.randn(2, 6, 4, 4)
    assert torch.equal(NonLocal(6, pairing=pairing, norm=norm).train(training)(x), x)


def test_only_the_norm_moves_at_first(pairing):
    block = NonLocal(6, pairing=pairing)
    block(torch.randn(2, 6, 4, 4)).pow(3).sum().backward()
    moved = {n for n, p in block.named_parameters() if p.grad.abs().max() > 0}
    assert moved == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("pairing", SOFTMAX)
def test_rows_of_the_gaussian_forms_sum_to_one(pairing):
    rows = open_block(pairing).attention(torch.randn(2, 6, 3, 4, dtype=torch.double)).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_positions_that_are_all_alike_give_their_own_value(pairing):
    block = open_block(pairing, norm=False)
    x = torch.randn(1, 6, 1, 1, dtype=torch.double).expand(1, 6, 3, 3)
    q, k, g = block.theta(x[..., 0, 0]), block.phi(x[..., 0, 0]), block.g(x[..., 0, 0])
    factor = torch.ones(1, dtype=torch.double)
    if pairing == "dot_product":
        factor = (q * k).sum(-1)
    elif pairing == "concatenation":
        factor = block.pair(torch.cat([q, k], -1))[..., 0].relu()
    torch.testing.assert_close((block(x) - x)[..., 1, 2], block.out(factor[:, None] * g))


def test_permuted_positions_give_permuted_outputs(pairing):
    block, x = open_block(pairing), torch.randn(2, 6, 3, 4, dtype=torch.double)
    order = torch.randperm(12)
    shuffled = x.flatten(2)[..., order].unflatten(2, (3, 4))
    torch.testing.assert_close(block(shuffled).flatten(2), block(x).flatten(2)[..., order])


@pytest.mark.parametrize("pairing", ["dot_product", "concatenation"])
def test_the_linear_pairings_scale_with_their_factors(pairing):
    block, x = open_block(pairing), torch.randn(2, 6, 3, 3, dtype=torch.double)
    before = block.attention(x)
    with torch.no_grad():
        for p in (block.theta if pairing == "dot_product" else block.pair).parameters():
            p.mul_(3)
    torch.testing.assert_close(block.attention(x), 3 * before)


def test_keys_of_zero_average_the_values():
    block = open_block("embedded_gaussian")
    torch.nn.init.zeros_(block.phi.weight)
    torch.nn.init.zeros_(block.phi.bias)
    rows = block.attention(torch.randn(2, 6, 3, 4, dtype=torch.double))
    torch.testing.assert_close(rows, torch.full_like(rows, 1 / 12))


def test_gaussian_is_embedded_gaussian_with_identities():
    plain = open_block("gaussian", ratio=1)
    embedded = open_block("embedded_gaussian", ratio=1)
    for layer in (embedded.theta, embedded.phi):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(2, 6, 3, 3, dtype=torch.double)
    torch.testing.assert_close(plain.attention(x), embedded.attention(x))


def test_pooling_before_and_behind_the_projections_differ(pairing):
    x = torch.randn(2, 6, 4, 4, dtype=torch.double)
    before, behind = (open_block(pairing, pool=p) for p in ("input", "projected"))
    behind.load_state_dict(before.state_dict())
    assert before.attention(x).shape == behind.attention(x).shape == (2, 16, 4)
    assert (before(x) - behind(x)).abs().max() > 0.01


def test_projected_pooling_takes_the_largest_of_four():
    block = open_block("dot_product", pool="projected")
    x = torch.randn(1, 6, 2, 2, dtype=torch.double)
    _, k, v = block.project(x)
    torch.testing.assert_close(k[0, 0], block.phi(x[0].flatten(1).T).amax(0))
    torch.testing.assert_close(v[0, 0], block.g(x[0].flatten(1).T).amax(0))


def test_time_counts_as_positions_and_is_not_pooled():
    block, x = open_block("scaled_gaussian", pool="input"), torch.randn(2, 6, 3, 4, 5).double()
    assert block.attention(x).shape == (2, 3 * 4 * 5, 3 * 2 * 2)
    assert block(x).shape == x.shape


def test_a_map_of_one_cell_is_not_pooled_away():
    block, x = open_block("scaled_gaussian", pool="input"), torch.randn(2, 6, 1, 1).double()
    torch.testing.assert_close(block.attention(x), torch.ones(2, 1, 1).double())


def test_dots_beyond_half_precision_stay_numbers_in_it(pairing):
    torch.manual_seed(0)
    block, x = NonLocal(64, pairing=pairing, ratio=1, norm=False), 50 * torch.randn(1, 64, 4, 4)
    for layer in (block.theta, block.phi, block.out):
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.eye_(layer.weight)
    torch.nn.init.normal_(block.g.weight, std=1e-3)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        y, rows = block(x) - x, block.attention(x)
    exact = (block(x) - x).detach()
    assert x.flatten(2).square().sum(1).max() > torch.finfo(torch.float16).max
    assert (y - exact).norm() < 0.01 * exact.norm()
    assert rows.isfinite().all()


def test_gradients_are_those_of_differences(pairing):
    block = open_block(pairing, channels=4, pool="input")
    x = torch.randn(1, 4, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_weights_start_as_in_the_official_code():
    torch.manual_seed(0)
    block = NonLocal(256)
    for layer in (block.theta, block.phi, block.g, block.out):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert not layer.bias.any()
    assert (block.norm.eps, block.norm.momentum) == (1e-5, 0.1)
    assert not block.norm.weight.any()
    assert not NonLocal(8, norm=False).out.weight.any()


def test_a_ratio_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="ratio=4 does not divide 6 channels; choose a divisor"):
        NonLocal(6, ratio=4)
