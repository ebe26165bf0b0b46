import pytest
import torch
import torch.nn.functional as F

from saccade.attention import FeaturePyramidTransformer
from saccade.attention.feature_pyramid_transformer import CrossAttention, Rendering, around

C = 6
STRIDES = (4, 8, 16, 32, 64, 128)


def attend(mixture=2, **settings):
    torch.manual_seed(0)
    made = CrossAttention(C, mixture, **settings).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made


def pair(fine=(3, 4), coarse=(2, 2), b=1):
    torch.manual_seed(1)
    return (torch.randn(b, C, *size, dtype=torch.double) for size in (fine, coarse))


def by_loops(made, x, other, parts, *, distance, keys=lambda i: None):
    """Both maps [C, h, w]; `keys(i)` names the cells that query i may see, None all."""
    x, other = x.flatten(1).T, other.flatten(1).T
    q, k, v = made.query(x), made.key(other), made.value(other)
    share = torch.stack([w @ k.mean(0) for w in made.weight]).softmax(0)
    d, rows = C // parts, []
    for i in range(len(q)):
        seen = keys(i) if keys(i) is not None else range(len(k))
        y = torch.zeros(C, dtype=torch.double)
        for n in range(parts):
            part = slice(n * d, (n + 1) * d)
            if distance:
                s = [-(q[i, part] - k[j, part]).square().sum() for j in seen]
            else:
                s = [q[i, part] @ k[j, part] for j in seen]
            for w, j in zip(torch.stack(s).softmax(0), seen, strict=True):
                y = y + share[n] * w * v[j]
        rows.append(y)
    return torch.stack(rows).T


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("distance", [False, True])
def test_attention_equals_the_equation_written_as_loops(parts, distance):
    made = attend(parts, distance=distance)
    x, other = pair((2, 3))
    y = by_loops(made, x[0], other[0], parts, distance=distance)
    torch.testing.assert_close(made(x, other)[0].flatten(1), y)


def test_a_square_sees_the_cells_around_the_place_of_the_query():
    made = attend(distance=True, square=3)
    x, other = pair((6, 4), (3, 4))

    def keys(i):  # every second row down, the same column
        row, column = i // 4 // 2, i % 4
        near = [(r, c) for r in range(row - 1, row + 2) for c in range(column - 1, column + 2)]
        return [r * 4 + c for r, c in near if 0 <= r < 3 and 0 <= c < 4]

    y = by_loops(made, x[0], other[0], 2, distance=True, keys=keys)
    torch.testing.assert_close(made(x, other)[0].flatten(1), y)


def test_a_square_wider_than_the_map_sees_all_of_it():
    local, whole = attend(distance=True, square=9), attend(distance=True)
    x, other = pair((6, 8), (3, 4))
    torch.testing.assert_close(local(x, other), whole(x, other))
    torch.testing.assert_close(local.attention(x, other), whole.attention(x, other))


@pytest.mark.parametrize("square", [0, 3])
def test_rows_sum_to_one_and_are_what_the_values_are_weighted_with(square):
    made = attend(distance=True, square=square)
    x, other = pair(b=2)
    rows = made.attention(x, other)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 12).double())
    y = rows @ made.value(other.flatten(2).mT)
    torch.testing.assert_close(made(x, other).flatten(2), y.mT)


def test_one_part_is_ordinary_attention():
    made = attend(1)
    x, other = pair()
    q, k, v = made.query(x.flatten(2).mT), made.key(other.flatten(2).mT), other.flatten(2).mT
    y = F.scaled_dot_product_attention(q, k, made.value(v), scale=1.0)
    torch.testing.assert_close(made(x, other).flatten(2).mT, y)


def test_equal_weights_mix_the_parts_evenly():
    made = attend(3)
    with torch.no_grad():
        made.weight.copy_(made.weight[:1].expand_as(made.weight))
    *_, shares = made.pairs(*pair())
    torch.testing.assert_close(shares, torch.full((1, 3), 1 / 3).double())


def test_keys_permuted_with_their_values_change_nothing():
    made = attend(distance=True)
    x, other = pair()
    torch.testing.assert_close(made(x, other.flip(2, 3)), made(x, other))


def test_identical_keys_give_the_mean_of_values():
    made = attend(distance=True)
    torch.nn.init.zeros_(made.key.weight)
    x, other = pair()
    mean = made.value(other.flatten(2).mT).mean(1)  # [1, C]
    y = made(x, other)
    torch.testing.assert_close(y, mean[..., None, None].expand_as(y))


def test_distances_between_keys_of_one_length_are_dots_at_half_the_temperature():
    made = attend(1, distance=True)
    x, other = pair()
    torch.nn.init.eye_(made.key.weight)
    torch.nn.init.zeros_(made.key.bias)
    other = F.normalize(other, dim=1)
    q, k = made.query(x.flatten(2).mT), other.flatten(2).mT
    torch.testing.assert_close(made.attention(x, other), (2 * q @ k.mT).softmax(-1))


def test_lengths_of_keys_keep_their_digits_in_half_precision():
    """Near twice the rounding of queries and keys themselves; one channel would be half as good."""
    torch.manual_seed(0)
    made, (x, other) = CrossAttention(256, 2, distance=True), torch.randn(2, 2, 256, 8, 8)
    for linear in (made.query, made.key):
        torch.nn.init.normal_(linear.weight, std=1 / 16)
    want = made(x, other)
    with torch.autocast("cpu", torch.bfloat16):
        got = made(x, other).float()
    assert (got - want).norm() < 0.03 * want.norm()


def test_places_are_scaled_between_odd_sizes():
    at, inside = around(torch.Size((5, 1)), torch.Size((3, 1)), 1, torch.device("cpu"))
    assert at[:, 0].tolist() == [0, 0, 1, 2, 2]
    assert inside.all()


def test_rendering_without_a_coarse_map_is_the_fine_one_made_smaller():
    torch.manual_seed(0)
    made = Rendering(C, 2).double()
    fine = torch.randn(1, C, 7, 5, dtype=torch.double)
    y = made(torch.zeros(1, C, 2, 2).double(), fine)
    down = made.down[1](made.down[0](fine)) + made.refine.bias[:, None, None]
    torch.testing.assert_close(y, made.out(down))


def test_rendering_of_a_fine_map_of_ones_leaves_the_coarse_one_its_weights():
    torch.manual_seed(0)
    made, x = Rendering(C, 1).double(), torch.randn(2, C, 3, 3).double()
    ones = torch.ones(2, C, 6, 6).double()
    torch.testing.assert_close(made(x, ones), made.out(made.refine(x) + made.down(ones)))


def test_rendering_equals_its_equation():
    torch.manual_seed(0)
    made = Rendering(C, 1).double()
    fine, x = torch.randn(2, C, 6, 6).double(), torch.randn(2, C, 3, 3).double()
    gate = torch.stack([f.flatten(1).sum(1) / 36 for f in fine])
    weighted = F.conv2d(x * gate[..., None, None], made.refine.weight, made.refine.bias, padding=1)
    small = F.conv2d(fine, made.down[0].weight, made.down[0].bias, stride=2, padding=1)
    y = F.conv2d(weighted + small, made.out.weight, made.out.bias, padding=1)
    torch.testing.assert_close(made(x, fine), y)


@pytest.mark.parametrize(
    "sizes",
    [
        [(25, 38), (13, 19), (7, 10), (4, 5)],
        [(8, 8), (4, 4), (2, 2)],
        [(33, 17), (17, 9), (9, 5), (5, 3), (3, 2), (2, 1)],
    ],
    ids=len,
)
@pytest.mark.parametrize("square", [0, 3])
def test_every_level_keeps_its_size_and_sees_one_map_more_than_there_are(sizes, square):
    made = FeaturePyramidTransformer(4, STRIDES[: len(sizes)], square=square)
    maps = [torch.randn(1, 4, *size) for size in sizes]
    with torch.no_grad():
        assert [y.shape for y in made(maps)] == [x.shape for x in maps]
        seen = [len(made.seen(maps, i)) for i in range(len(maps))]
    assert seen == [len(sizes) + 1] * len(sizes)


def test_context_goes_down_by_grounding_and_detail_up_by_rendering():
    maps = [torch.randn(1, 4, s, s) for s in (8, 4, 2)]
    ground = FeaturePyramidTransformer(4, STRIDES[:3], use=("grounding",))
    render = FeaturePyramidTransformer(4, STRIDES[:3], use=("rendering",))
    for changed in range(3):
        other = [x + (i == changed) for i, x in enumerate(maps)]
        with torch.no_grad():
            down = [not torch.equal(a, b) for a, b in zip(ground(maps), ground(other), strict=True)]
            up = [not torch.equal(a, b) for a, b in zip(render(maps), render(other), strict=True)]
        assert down == [i <= changed for i in range(3)]
        assert up == [i >= changed for i in range(3)]


def test_without_its_parts_it_is_a_convolution():
    made = FeaturePyramidTransformer(4, STRIDES[:2], use=())
    maps = [torch.randn(1, 4, s, s) for s in (4, 2)]
    y = F.conv2d(maps[0], made.out[0].weight, made.out[0].bias, padding=1)
    torch.testing.assert_close(made(maps)[0], y)


@pytest.mark.parametrize("settings", [{}, {"distance": True}, {"distance": True, "square": 3}])
def test_gradients_are_those_of_differences(settings):
    x, other = (t.requires_grad_() for t in pair((2, 3), (2, 2)))
    assert torch.autograd.gradcheck(attend(**settings), (x, other))


def test_gradients_of_a_whole_pyramid_are_those_of_differences():
    torch.manual_seed(0)
    made = FeaturePyramidTransformer(2, (1, 2)).double()
    maps = [torch.randn(1, 2, s, s, dtype=torch.double, requires_grad=True) for s in (3, 2)]
    assert torch.autograd.gradcheck(lambda *maps: tuple(made(list(maps))), maps)


def test_levels_of_one_stride_are_rendered_without_halving():
    """The last stages of a dilated network, for segmentation."""
    made = FeaturePyramidTransformer(4, (4, 8, 8))
    maps = [torch.randn(1, 4, *size) for size in ((7, 6), (4, 3), (4, 3))]
    assert [y.shape for y in made(maps)] == [x.shape for x in maps]
    steps = {name: [conv.stride[0] for conv in part.down] for name, part in made.render.items()}
    assert steps == {"1_0": [2], "2_0": [2], "2_1": [1]}


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"strides=\(4, 12\): each must be 1, 2, 4"):
        FeaturePyramidTransformer(4, (4, 12))
    with pytest.raises(ValueError, match="mixture=2 does not divide 5 channels; choose a divisor"):
        FeaturePyramidTransformer(5, (1, 2))
    with pytest.raises(ValueError, match="square=4 has no center"):
        FeaturePyramidTransformer(4, (1, 2), square=4)
    made = FeaturePyramidTransformer(4, (4, 8))
    with pytest.raises(ValueError, match=r"map of 3 x 3 at stride 8: below one of 7 x 6 .* 4 x 3"):
        made([torch.randn(1, 4, 7, 6), torch.randn(1, 4, 3, 3)])


def test_a_square_keeps_the_digits_of_distances_in_half_precision():
    torch.manual_seed(0)
    made = CrossAttention(64, 1, distance=True, square=3)
    x, other = torch.randn(1, 64, 8, 8), torch.randn(1, 64, 4, 4)
    for linear in (made.query, made.key):
        torch.nn.init.normal_(linear.weight, std=1 / 4)
    want = made.attention(x, other)
    with torch.autocast("cpu", torch.bfloat16):
        got = made.attention(x, other)
    assert (got - want).norm() < 0.05 * want.norm()
