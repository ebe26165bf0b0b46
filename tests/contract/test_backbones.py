"""What every kind of encoder promises, over every kind of encoder."""

from functools import cache

import pytest
import torch

from saccade.backbones import create, names
from saccade.backbones.presets import OWN, PRESETS
from saccade.core import PatchBackbone, PixelBackbone
from saccade.recipe import BackboneConfig

# SimCLR v2's, up to 795 M parameters, hybrids up to 420 layers, bases: the smallest stands in
DEEP = [n for n in PRESETS if "resnetrs" in n or "101" in n]
BASES = ["beit_base_shared_patch16_224", "swin_base_patch4_window6_192"]
HUGE = [n for n in PRESETS if "_x" in n or (n in DEEP and n != "lambda_resnetrs50")] + BASES
SIZES = {  # the smallest of each family and every other preset
    "convnext_atto": 32,
    "resnet18": 32,
    "swin_tiny_patch4_window7_224": 32,
    "vit_tiny_patch16_224": 32,
    "vit_little_patch16_reg4_gap_256": 32,
    "vit_small_patch14_reg4_dinov2": 28,
    "vit_small_patch16_dinov3": 32,
    "vit_tiny_r_s16_p8_224": 64,
    "deit_tiny_distilled_patch16_224": 32,
    **dict.fromkeys((n for n in PRESETS if n not in HUGE), 16),
    **dict.fromkeys(("igpt_pico_16", "igpt_pico_16_bert"), 8),
    **dict.fromkeys((n for n in PRESETS if "patch12" in n), 24),
    "swin_pico_patch4_window4_64": 32,
}
PLAIN = [n for n in SIZES if n.startswith("vit") and "dinov3" not in n and "_r_" not in n]


@cache
def built(name):
    torch.manual_seed(0)
    return create(BackboneConfig(name=name, image_size=SIZES[name])).eval()


@pytest.fixture(params=SIZES, ids=str)
def encoder(request):
    return built(request.param)


@pytest.fixture(params=PLAIN, ids=str)
def vit(request):
    return built(request.param)


def pictures(encoder):
    torch.manual_seed(1)
    return torch.randn(2, encoder.channels, encoder.image_size, encoder.image_size)


def test_shapes_follow_the_attributes(encoder):
    x = pictures(encoder)
    with torch.no_grad():
        assert encoder(x).shape == (2, encoder.dim)
        side = -(-encoder.image_size // encoder.stride)
        assert encoder.features(x).shape == (2, encoder.dim, side, side)


def test_gradient_reaches_every_weight(encoder):
    x = pictures(encoder)
    encoder.zero_grad()
    y = encoder(x)
    (y * torch.randn_like(y)).sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None]
    # what names colors has no part in features
    assert without == (["output.weight"] if isinstance(encoder, PixelBackbone) else [])
    encoder.zero_grad()


def test_a_larger_picture_gives_a_larger_map(encoder):
    side = encoder.image_size
    with torch.no_grad():
        small = encoder.features(torch.randn(1, 3, side, side))
        large = encoder.features(torch.randn(1, 3, 2 * side, 2 * side))
    assert large.shape[-2:] == (2 * small.shape[-2], 2 * small.shape[-1])


def test_rows_of_a_batch_do_not_mix(encoder):
    x = pictures(encoder)
    with torch.no_grad():
        both, one = encoder(x), encoder(x[1:])
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-4)


def test_token_access_agrees_with_the_whole_pass(vit):
    x = pictures(vit)
    assert isinstance(vit, PatchBackbone)
    rows, columns = vit.grid
    with torch.no_grad():
        tokens = vit.tokens(x)
        encoded = vit.encode(tokens)
        (last,) = vit.layers(x, 1)
        attention = vit.attention(x)
    assert tokens.shape == (2, rows * columns, vit.dim)
    assert encoded.shape[1] == vit.prefix + rows * columns
    torch.testing.assert_close(last, encoded)
    assert attention.shape[-2:] == (encoded.shape[1],) * 2
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    patches = encoded[:, vit.prefix :].mT.unflatten(2, vit.grid)
    torch.testing.assert_close(vit.features(x), patches)


def test_encoding_while_looking_gives_both_as_two_passes_do(vit):
    x = pictures(vit)
    with torch.no_grad():
        tokens = vit.tokens(x)
        encoded, row = vit.encode_and_look(tokens)
        assert torch.equal(encoded, vit.encode(tokens))
        torch.testing.assert_close(row, vit.attention(x)[:, :, 0])


def test_positions_are_what_tokens_add(vit):
    side = vit.image_size
    with torch.no_grad():
        for height, width in ((side, side), (side, 2 * side)):
            x = torch.randn(2, 3, height, width)
            bare = vit.tokens(x) - vit.positions(height, width)
            embedded = vit.projection()(x).flatten(2).mT
            torch.testing.assert_close(bare, embedded, atol=1e-5, rtol=1e-4)


def test_encode_takes_any_subset_and_ignores_the_dropped(vit):
    x = pictures(vit)
    changed = x.clone()
    changed[:, :, : vit.patch, : vit.patch] += 1  # only the first patch
    with torch.no_grad():
        a = vit.encode(vit.tokens(x)[:, 1:])
        b = vit.encode(vit.tokens(changed)[:, 1:])
    assert torch.equal(a, b)
    assert a.shape[1] == vit.prefix + vit.grid[0] * vit.grid[1] - 1


def test_patches_in_another_order_come_out_in_that_order(vit):
    with torch.no_grad():
        tokens = vit.tokens(pictures(vit))  # with their positions, which go along
        order = torch.randperm(tokens.shape[1])
        y, shuffled = vit.encode(tokens), vit.encode(tokens[:, order])
    n = vit.prefix
    torch.testing.assert_close(shuffled[:, :n], y[:, :n], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shuffled[:, n:], y[:, n:][:, order], atol=1e-5, rtol=1e-4)


def test_the_short_list_holds_no_unknown_name():
    import timm

    assert [n for n in names() if n not in PRESETS | OWN and not timm.is_model(n)] == []
