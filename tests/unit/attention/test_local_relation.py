import math

import pytest
import torch
import torch.nn.functional as F

from saccade.attention import LocalRelation
from saccade.attention.local_relation import aggregate


def layer(channels=4, **settings):
    torch.manual_seed(0)
    made = LocalRelation(channels, **{"kernel": 3, "group": 2, **settings}).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return made


def picture(*size):
    torch.manual_seed(1)
    return torch.randn(*(size or (2, 4, 5, 6)), dtype=torch.double)


def silent(*parts):
    """Let these parts give zero."""
    for p in (p for part in parts for p in part.parameters()):
        torch.nn.init.zeros_(p)


def by_loops(made, x, *, kernel=3, group=2, stride=1, dilation=1, similarity="product"):
    """The equation for one picture [C, H, W], windows cut off at the border."""
    q, k = made.query(x[None])[0], made.key(x[None])[0]
    prior = made.geometry(made.offsets)  # [O, G]
    channels, height, width = x.shape
    y = x.new_zeros(channels, -(-height // stride), -(-width // stride))
    for c in range(channels):
        g = c // group
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                total = weight = 0.0
                for o in range(kernel**2):
                    down = i * stride + (o // kernel - kernel // 2) * dilation
                    right = j * stride + (o % kernel - kernel // 2) * dilation
                    if not (0 <= down < height and 0 <= right < width):
                        continue
                    a, b = float(q[g, i * stride, j * stride]), float(k[g, down, right])
                    like = {"product": a * b, "squared": -((a - b) ** 2), "absolute": -abs(a - b)}
                    e = math.exp(like[similarity] + float(prior[o, g]))
                    total, weight = total + e * x[c, down, right], weight + e
                y[c, i, j] = total / weight
    return y


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"similarity": "squared"},
        {"similarity": "absolute"},
        {"stride": 2},
        {"dilation": 2},
        {"stride": 2, "dilation": 2},
        {"kernel": 5},
        {"group": 1},
        {"group": 4},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_the_equation_written_as_loops(settings):
    made, x = layer(**settings), picture(1, 4, 5, 4)
    torch.testing.assert_close(made(x)[0], by_loops(made, x[0], **settings))


def test_weights_are_shares_of_every_window():
    w = layer().attention(picture())
    assert (w >= 0).all()
    torch.testing.assert_close(w.sum(2), torch.ones_like(w[:, :, 0]))


def test_a_constant_map_stays_as_it_is_also_at_the_border():
    x = picture(1, 4, 1, 1).expand(1, 4, 5, 5)
    torch.testing.assert_close(layer()(x), x)


@pytest.mark.parametrize("part", ["query", "key"])
def test_without_queries_or_keys_it_is_a_convolution_with_one_kernel_a_group(part):
    made = layer()
    silent(made.get_submodule(part))
    kernels = made.geometry(made.offsets).softmax(0).T.unflatten(1, (3, 3))  # [G, 3, 3]
    x = picture()
    y = F.conv2d(x, kernels.repeat_interleave(2, 0)[:, None], padding=1, groups=4)
    torch.testing.assert_close(made(x)[..., 1:-1, 1:-1], y[..., 1:-1, 1:-1])


def unfolded(made, x):
    """The official operator's rule: positions outside have logit -100 and the prior, no value."""
    k, s, d = made.kernel, made.stride, made.dilation
    g, pad = made.groups, k // 2 * d

    def windows(y):
        return F.unfold(y, k, d, pad, s).unflatten(1, (y.shape[1], -1))  # [B, C, O, N]

    q = made.query(x)[..., ::s, ::s].flatten(2)[:, :, None]
    like = torch.where(windows(torch.ones_like(x[:, :1])) > 0, q * windows(made.key(x)), -100.0)
    w = (like + made.geometry(made.offsets).T[:, :, None]).softmax(2)  # [B, G, O, N]
    y = (windows(x).unflatten(1, (g, -1)) * w[:, :, None]).sum(3)
    return y.flatten(1, 2).unflatten(2, [-(-side // s) for side in x.shape[2:]])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_values_and_gradients_are_those_of_unfolded_windows(stride, dilation):
    made = layer(8, kernel=5, stride=stride, dilation=dilation).float()
    x = picture(2, 8, 9, 7).float().requires_grad_()
    inputs, found = (x, *made.parameters()), []
    for y in (made(x), unfolded(made, x)):
        found.append((y, *torch.autograd.grad(y.cos().sum(), inputs)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_with_weights_held_the_output_grows_with_the_picture():
    made, x = layer(), picture()
    torch.testing.assert_close(aggregate(3 * x, made.attention(x), 1, 1), 3 * made(x))


def test_without_keys_and_prior_it_is_the_mean_of_what_lies_on_the_map():
    made = layer()
    silent(made.key, made.geometry)
    x = picture()
    mean = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(made(x), mean)


def test_a_shifted_picture_gives_a_shifted_map():
    made, x = layer(), picture(1, 4, 9, 9)
    y, moved = made(x), made(x.roll((1, 2), (2, 3)))
    torch.testing.assert_close(moved[..., 3:-2, 4:-2], y[..., 2:-3, 2:-4])


def test_a_kernel_of_one_is_the_identity():
    x = picture()
    torch.testing.assert_close(layer(kernel=1)(x), x)


def test_a_window_wider_than_the_map_is_global_attention():
    made, x = layer(kernel=9), picture(1, 4, 4, 4)
    silent(made.geometry)
    q, k = made.query(x).flatten(2), made.key(x).flatten(2)  # [1, G, N]
    rows = (q[..., None] * k[:, :, None]).softmax(-1)
    y = torch.einsum("bgnm,bgcm->bgcn", rows, x.flatten(2).unflatten(1, (2, 2)))
    torch.testing.assert_close(made(x).flatten(2), y.flatten(1, 2))


def test_the_prior_is_the_same_at_all_sizes_and_has_no_size_of_the_kernel():
    counts = {sum(p.numel() for p in layer(kernel=k).parameters()) for k in (3, 5, 7)}
    assert len(counts) == 1


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "dilation": 2}], ids=str)
def test_gradients_are_those_of_differences(settings):
    x = picture(1, 4, 3, 4).requires_grad_()
    made = layer(**settings)
    assert torch.autograd.gradcheck(made, (x,))

    def call(weight):
        return torch.func.functional_call(made, {"key.weight": weight}, (x.detach(),))

    assert torch.autograd.gradcheck(call, (made.key.weight,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"kernel": 4}, "kernel=4 has no center"), ({"group": 3}, "group=3 does not divide 4")],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        layer(**settings)


def test_offsets_run_from_corner_to_corner_as_the_window_does():
    """Rows first, like the windows; the prior of an offset is its own."""
    offsets = layer(kernel=5).offsets.unflatten(0, (5, 5)).tolist()
    for i in range(5):
        for j in range(5):
            assert offsets[i][j] == pytest.approx([i / 2 - 1, j / 2 - 1])
