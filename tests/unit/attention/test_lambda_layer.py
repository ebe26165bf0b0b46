import pytest
import torch

from saccade.attention import GlobalLambda, LambdaLayer, LocalLambda

K, HEADS, V = 3, 2, 2


def layer(positions, channels=5):
    torch.manual_seed(0)
    return LambdaLayer(channels, HEADS * V, positions, heads=HEADS).double().eval()


def same_table(scope, size, intra):
    """A local and a global layer with the same weights; offsets beyond the scope have none."""
    local = layer(LocalLambda(scope, depth=K, intra=intra))
    whole = layer(GlobalLambda(size, depth=K, intra=intra))
    whole.qkv.load_state_dict(local.qkv.state_dict())
    table = torch.zeros(2 * size[0] - 1, 2 * size[1] - 1, K, intra, dtype=torch.double)
    for i in range(scope):
        for j in range(scope):
            down, right = i - scope // 2 + size[0] - 1, j - scope // 2 + size[1] - 1
            if 0 <= down < len(table) and 0 <= right < table.shape[1]:
                table[down, right] = local.positions.table[:, :, i, j]
    whole.positions.table.data = table.flatten(0, 1)
    return local, whole


def by_loops(made, x, table):
    """The equation for one picture [C, H, W]; table(down, right) is E of an offset, [k, u]."""
    u = made.positions.intra
    q, k, v = made.qkv(x[None]).split(made.parts, 1)
    q = made.norm_q(q)[0].flatten(1).unflatten(0, (HEADS, K))
    k = k[0].flatten(1).unflatten(0, (u, K))
    v = made.norm_v(v)[0].flatten(1).unflatten(0, (u, V))
    width, n = x.shape[2], q.shape[2]
    share = k.exp() / k.exp().sum(2, keepdim=True)
    y = x.new_zeros(HEADS, V, n)
    for i in range(n):
        lam = x.new_zeros(K, V)
        for m in range(n):
            e = table(m // width - i // width, m % width - i % width)
            for d in range(u):
                lam += torch.outer(share[d, :, m] + e[:, d], v[d, :, m])
        for h in range(HEADS):
            y[h, :, i] = lam.T @ q[h, :, i]
    return y.flatten(0, 1).unflatten(1, x.shape[1:])


@pytest.mark.parametrize("intra", [1, 3])
@torch.no_grad()
def test_the_global_layer_equals_the_equation_written_as_loops(intra):
    made, x = layer(GlobalLambda((3, 4), depth=K, intra=intra)), torch.randn(1, 5, 3, 4).double()
    table = made.positions.table.unflatten(0, (5, 7))
    y = by_loops(made, x[0], lambda down, right: table[down + 2, right + 3])
    torch.testing.assert_close(made(x)[0], y)


@pytest.mark.parametrize("intra", [1, 3])
@torch.no_grad()
def test_the_convolution_equals_the_equation_within_its_scope(intra):
    made, x = layer(LocalLambda(3, depth=K, intra=intra)), torch.randn(1, 5, 4, 3).double()
    table, none = made.positions.table, torch.zeros(K, intra).double()

    def near(down, right):
        return table[:, :, down + 1, right + 1] if max(abs(down), abs(right)) < 2 else none

    torch.testing.assert_close(made(x)[0], by_loops(made, x[0], near))


@pytest.mark.parametrize(("scope", "size"), [(3, (4, 5)), (7, (4, 4)), (5, (2, 6)), (9, (1, 3))])
@pytest.mark.parametrize("intra", [1, 2])
def test_the_convolution_is_the_global_layer_with_a_masked_table(scope, size, intra):
    local, whole = same_table(scope, size, intra)
    x = torch.randn(2, 5, *size, dtype=torch.double)
    torch.testing.assert_close(local(x), whole(x))


def test_keys_are_shares_of_positions_so_that_constant_values_come_through_whole():
    made = layer(LocalLambda(3, depth=K))
    torch.nn.init.zeros_(made.positions.table)
    x = torch.randn(2, 5, 4, 4, dtype=torch.double)
    q, _, v = made.qkv(x).split(made.parts, 1)
    made.norm_v.running_mean.zero_()
    made.norm_v.weight.data.zero_()
    made.norm_v.bias.data.fill_(2)  # values of 2 everywhere
    total = made.norm_q(q).flatten(2).unflatten(1, (HEADS, K)).sum(2)  # ones over k
    torch.testing.assert_close(made(x).flatten(2)[:, :V], 2 * total[:, :1].expand_as(v.flatten(2)))


def test_content_ignores_the_order_of_the_context_and_positions_do_not():
    x = torch.randn(1, 5, 3, 3, dtype=torch.double)
    order = torch.tensor([4, 0, 1, 2, 3, 5, 6, 7, 8])
    shuffled = x.flatten(2)[..., order].unflatten(2, (3, 3))
    made = layer(GlobalLambda((3, 3), depth=K))
    y, z = made(x).flatten(2)[..., order], made(shuffled).flatten(2)
    assert (y - z).abs().max() > 1e-2
    torch.nn.init.zeros_(made.positions.table)
    y, z = made(x).flatten(2)[..., order], made(shuffled).flatten(2)
    torch.testing.assert_close(y, z)


def test_a_scope_of_one_gives_every_position_its_own_value():
    positions = LocalLambda(1, depth=K).double()
    v = torch.randn(2, 1, V, 3, 3, dtype=torch.double)
    y = positions(v)
    torch.testing.assert_close(y, v.mT.mT.transpose(1, 2) * positions.table[:, 0, :, :])


@pytest.mark.parametrize("positions", [LocalLambda(3, depth=K), GlobalLambda((6, 6), depth=K)])
def test_positions_move_with_the_picture(positions):
    v = torch.zeros(1, 1, V, 6, 6, dtype=torch.double)
    v[..., 1:5, 1:5] = torch.randn(V, 4, 4)
    positions = positions.double()
    y, moved = positions(v), positions(v.roll((1, 1), (3, 4)))
    torch.testing.assert_close(moved[..., 1:, 1:], y[..., :-1, :-1])


def test_a_table_has_a_number_for_every_offset_of_every_channel():
    for scope, depth, intra in ((23, 16, 1), (7, 16, 4)):
        made = LocalLambda(scope, depth=depth, intra=intra)
        assert sum(p.numel() for p in made.parameters()) == scope**2 * depth * intra


def test_all_heads_share_their_lambdas():
    made = layer(LocalLambda(3, depth=K))
    with torch.no_grad():
        made.qkv.weight[:K] = made.qkv.weight[K : 2 * K]  # equal queries
    first, second = made(torch.randn(2, 5, 4, 4, dtype=torch.double)).chunk(2, 1)
    torch.testing.assert_close(first, second)


def test_more_heads_make_position_lambdas_smaller():
    x, sizes = torch.randn(1, 8, 4, 4), []
    for heads in (1, 2, 4):
        positions = LocalLambda(3, depth=K)
        positions.register_forward_hook(lambda m, i, out: sizes.append(out.numel()))
        LambdaLayer(8, 8, positions, heads=heads)(x)
    assert sizes == [8 * K * 16, 4 * K * 16, 2 * K * 16]


def test_weights_start_as_the_paper_says():
    torch.manual_seed(0)
    made = LambdaLayer(256, 256, LocalLambda(23))
    q, k, v = made.qkv.weight.split(made.parts)
    assert q.std().item() == pytest.approx((16 * 256) ** -0.5, rel=0.03)
    assert k.std().item() == pytest.approx(256**-0.5, rel=0.03)
    assert v.std().item() == pytest.approx(256**-0.5, rel=0.03)
    assert made.positions.table.std().item() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("positions", [LocalLambda, GlobalLambda])
def test_gradients_are_those_of_differences(positions):
    size = {"scope": 3} if positions is LocalLambda else {"size": (3, 3)}
    made = layer(positions(depth=K, intra=2, **size))
    x = torch.randn(2, 5, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="scope=4 has no center"):
        LocalLambda(4)
    with pytest.raises(ValueError, match="heads=3 does not divide 8"):
        LambdaLayer(8, 8, LocalLambda(3), heads=3)
    with pytest.raises(ValueError, match="4 x 4, built for 3 x 3; use LocalLambda"):
        layer(GlobalLambda((3, 3)))(torch.randn(1, 5, 4, 4).double())


def test_shares_of_a_large_map_sum_to_one_in_half_precision():
    """1 / 2025 is none of the numbers of bfloat16: 2025 times its nearest one is .9965."""
    made = LambdaLayer(4, 4, LocalLambda(1, depth=4), heads=2).eval()
    for p in (made.qkv.weight, made.norm_q.weight, made.norm_v.weight, made.positions.table):
        torch.nn.init.zeros_(p)
    for norm in (made.norm_q, made.norm_v):
        torch.nn.init.ones_(norm.bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = made(torch.randn(1, 4, 45, 45))
    assert torch.equal(y, torch.full_like(y, 4.0))
