"""What each mechanism says it looks at, beside its equation as loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.attention import (
    DisentangledNonLocal,
    GlobalContext,
    GlobalLambda,
    LambdaLayer,
    LocalLambda,
    LocalRelation,
    NonLocal,
)
from saccade.attention.feature_pyramid_transformer import CrossAttention

AT = torch.tensor([0, 7, 11])
SIZE = (3, 4)


def toy(layer):
    torch.manual_seed(0)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    for b in layer.buffers():
        if b.dtype == torch.float32 and b.ndim == 1:
            b.uniform_(0.5, 1.5)  # batch statistics
    return layer.eval(), torch.randn(2, 8, *SIZE)


def softmax(logits):
    top = max(logits)
    e = [math.exp(v - top) for v in logits]
    return [v / sum(e) for v in e]


@torch.no_grad()
def test_non_local_rows_are_softmaxes_over_pooled_keys():
    layer, x = toy(NonLocal(8, pool="input"))
    rows = layer.look(x, AT)["attention"]
    assert rows.shape == (2, 1, 3, 1, 2)
    pooled = F.max_pool2d(x, 2)
    for b in range(2):
        for i, n in enumerate(AT.tolist()):
            q = layer.theta(x[b, :, n // 4, n % 4])
            keys = [layer.phi(pooled[b, :, 0, j]) for j in range(2)]
            expected = softmax([float(q @ k) * layer.scale for k in keys])
            assert rows[b, 0, i].flatten().tolist() == pytest.approx(expected, abs=1e-5)
            assert sum(expected) == pytest.approx(1)


@torch.no_grad()
def test_disentangled_rows_are_whitened_pairs_and_one_map_for_all():
    layer, x = toy(DisentangledNonLocal(8, temperature=1.0))
    parts = layer.look(x, AT)
    y = x.flatten(2).mT  # [B, N, C]
    for b in range(2):
        q, k = layer.query(y[b]), layer.key(y[b])
        q, k = q - q.mean(0), k - k.mean(0)
        unary = softmax([float(layer.mask(y[b, j])) for j in range(12)])
        for i, n in enumerate(AT.tolist()):
            pairs = softmax([float(q[n] @ k[j]) / 2 for j in range(12)])  # sqrt d = 2
            assert parts["pairwise"][b, 0, i].flatten().tolist() == pytest.approx(pairs, abs=1e-5)
            assert parts["unary"][b, 0, i].flatten().tolist() == pytest.approx(unary, abs=1e-5)


@torch.no_grad()
def test_global_context_has_one_map_for_all_queries():
    layer, x = toy(GlobalContext(8))
    rows = layer.look(x, AT)["unary"]
    assert rows.shape == (2, 1, 3, *SIZE)
    expected = softmax([float(layer.mask(v)) for v in x[1].flatten(1).mT])
    for row in rows[1, 0]:
        assert row.flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@torch.no_grad()
def test_local_relation_makes_its_output_from_the_rows(stride, dilation):
    """y_c(n) = sum_m row_g(n, m) x_c(m), rows of sum 1 within the window."""
    layer, x = toy(LocalRelation(8, kernel=3, group=4, stride=stride, dilation=dilation))
    y = layer(x)
    at = torch.arange(y[0, 0].numel())
    rows = layer.look(x, at)["attention"]  # [B, G, Q, H, W]
    for c in range(8):
        row = rows[:, c // 4]
        expected = [[float((row[b, n] * x[b, c]).sum()) for n in at] for b in range(2)]
        torch.testing.assert_close(y[:, c].flatten(1), torch.tensor(expected))
    assert rows.sum((3, 4)).flatten().tolist() == pytest.approx([1.0] * rows.shape[:3].numel())
    assert (rows[0, 0, 0, dilation + 1 :] == 0).all()  # beyond the window of the first cell
    assert (rows[0, 0, 0, : dilation + 1 : dilation, : dilation + 1 : dilation] > 0).all()


@pytest.mark.parametrize("intra", [1, 2])
@pytest.mark.parametrize("local", [True, False])
@torch.no_grad()
def test_lambda_makes_its_output_from_content_and_position(local, intra):
    """y_n = sum_m,u (content + position)_nmu v_mu, head by head."""
    positions = LocalLambda(3, depth=3, intra=intra)
    positions = positions if local else GlobalLambda(SIZE, depth=3, intra=intra)
    layer, x = toy(LambdaLayer(8, 8, positions, heads=2))
    y = layer(x).flatten(2)  # [B, D, N]
    parts = layer.look(x, torch.arange(12))
    weights = (parts["content"] + parts["position"]).flatten(3)  # [B, 2 u, N, M]
    v = layer.norm_v(layer.qkv(x).split(layer.parts, 1)[2]).flatten(2)  # [B, u v, M]
    for b in range(2):
        for d in range(8):
            head, channel = divmod(d, 4)
            for n in range(12):
                made = sum(
                    float(weights[b, head * intra + u, n] @ v[b, u * 4 + channel])
                    for u in range(intra)
                )
                assert made == pytest.approx(float(y[b, d, n]), rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_lambda_positions_end_at_the_scope():
    layer, x = toy(LambdaLayer(8, 8, LocalLambda(3, depth=3), heads=2))
    row = layer.look(x, torch.tensor([0]))["position"][0, 0, 0]
    assert (row[2:] == 0).all()
    assert (row[:, 2:] == 0).all()
    assert (row[:2, :2] != 0).all()


@pytest.mark.parametrize("settings", [{}, {"distance": True}, {"distance": True, "square": 3}])
@torch.no_grad()
def test_a_cell_of_a_pyramid_has_the_shares_of_the_equation(settings):
    """sum_n pi_n softmax_j(s_n), key by key; beyond a square there is nothing."""
    layer = CrossAttention(4, 2, **settings)
    layer, _ = toy(layer)
    x, other = torch.randn(1, 4, 6, 4), torch.randn(1, 4, 3, 4)
    rows = layer.look(x, other, torch.tensor([9]))  # row 2, column 1: row 1 of the other map
    q, k = layer.query(x[0, :, 2, 1]), layer.key(other[0].flatten(1).mT)
    pi = softmax([float(w @ k.mean(0)) for w in layer.weight])
    near = [j for j in range(12) if "square" not in settings or j % 4 <= 2]
    want = [0.0] * 12
    for n in range(2):
        part = slice(2 * n, 2 * n + 2)
        dots = [float(q[part] @ k[j, part]) for j in near]
        away = [-float((q[part] - k[j, part]).square().sum()) for j in near]
        for j, w in zip(near, softmax(away if settings else dots), strict=True):
            want[j] += pi[n] * w
    assert rows.shape == (1, 1, 3, 4)
    assert rows.flatten().tolist() == pytest.approx(want, abs=1e-5)
