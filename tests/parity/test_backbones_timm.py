"""The adapter against timm itself, and Swin torchvision's: same weights, same numbers."""

import re

import pytest
import timm
import torch
import torchvision
from timm.models.swin_transformer import SwinTransformer

from saccade.backbones import create
from saccade.backbones.timm_adapter import StagedNet
from saccade.backbones.timm_state import load_timm_state, timm_state
from saccade.recipe import BackboneConfig


def pair(name, size, **kwargs):
    """Ours and timm's own, built apart and given the same weights."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, **kwargs).eval()
    ours = create(BackboneConfig(name=name, image_size=size, stem="paper")).eval()
    load_timm_state(ours, theirs.state_dict())
    return ours, theirs, torch.randn(2, 3, size, size)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size", "kwargs"),
    [
        ("resnet18", 64, {}),
        ("convnext_atto", 32, {}),
        ("swin_tiny_patch4_window7_224", 32, {"img_size": 32}),
        ("vit_tiny_patch16_224", 32, {"img_size": 32}),
        ("vit_small_patch14_reg4_dinov2", 28, {"img_size": 28}),
        ("vit_small_patch16_dinov3", 32, {"img_size": 32}),
        ("vit_tiny_r_s16_p8_224", 64, {"img_size": 64}),
        ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32}),
    ],
)
def test_the_pooled_vector_equals_timms(name, size, kwargs):
    ours, theirs, x = pair(name, size, **kwargs)
    assert torch.equal(ours(x), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("swin_tiny_patch4_window7_224", 64)])
def test_the_map_equals_timms_last_stage(name, size):
    kwargs = {"img_size": size} if "swin" in name else {}
    ours, theirs, x = pair(name, size, **kwargs)
    (last,) = theirs.forward_intermediates(
        x, indices=1, norm="swin" in name, output_fmt="NCHW", intermediates_only=True
    )
    torch.testing.assert_close(ours.features(x), last, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "deit_tiny_distilled_patch16_224"])
def test_the_map_is_made_of_timms_patch_tokens(name):
    ours, theirs, x = pair(name, 64, img_size=64)
    y = theirs.forward_features(x)[:, theirs.num_prefix_tokens :]  # [B, N, D]
    side = 64 // ours.stride
    for row, column in ((0, 1), (side - 1, 0)):
        assert torch.equal(ours.features(x)[:, :, row, column], y[:, row * side + column])


def named_by_timm(key):
    """A key of torchvision's Swin."""
    key = key.replace("features.0.0.", "patch_embed.proj.").replace("0.2.", "patch_embed.norm.")
    key = key.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
    key = key.replace("features.patch_embed", "patch_embed")
    found = re.match(r"features\.(\d)\.(.*)", key)
    if found is None:
        return key
    place, inside = int(found[1]), found[2]
    return f"layers.{place // 2}.{'blocks' if place % 2 else 'downsample'}.{inside}"


@torch.no_grad()
def test_swin_is_torchvisions():
    """Two stages of shifted windows, the second without: its map is one window."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
    theirs = torchvision.models.SwinTransformer([4, 4], window_size=[7, 7], **sizes).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    theirs.head = torch.nn.Identity()
    net = SwinTransformer(56, num_classes=0, window_size=7, strict_img_size=False, **sizes)
    ours = StagedNet(net, "swin", BackboneConfig(image_size=56), frozenset()).eval()
    report = load_timm_state(ours, {named_by_timm(k): v for k, v in theirs.state_dict().items()})
    assert all(k.endswith("relative_position_index") for k in report.unexpected)
    x = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
    tokens = theirs.norm(theirs.features(x)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours.features(x), tokens, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_convnexts_map_is_normed_at_every_position():
    ours, theirs, x = pair("convnext_atto", 64)
    raw = theirs.forward_features(x)  # [B, D, h, w]
    norm = theirs.head.norm
    for at in ((0, 0), (1, 0)):
        v = raw[:, :, at[0], at[1]]
        v = (v - v.mean(1, keepdim=True)) / (v.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        v = v * norm.weight + norm.bias
        torch.testing.assert_close(ours.features(x)[:, :, at[0], at[1]], v, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_tokens_layers_and_map_equal_timms(name):
    size = 28 if "14" in name else 32
    ours, theirs, x = pair(name, size, img_size=size)
    torch.testing.assert_close(ours.encode(ours.tokens(x)), theirs.forward_features(x))
    stages = theirs.get_intermediate_layers(x, n=3, return_prefix_tokens=True, norm=True)
    for mine, (patches, prefix) in zip(ours.layers(x, 3), stages, strict=True):
        torch.testing.assert_close(mine, torch.cat([prefix, patches], 1))
    grid = theirs.get_intermediate_layers(x, n=1, reshape=True, norm=True)[0]
    torch.testing.assert_close(ours.features(x), grid)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 64])
def test_a_picture_of_another_size_equals_timms_dynamic_positions(size):
    ours, theirs, _ = pair("vit_tiny_patch16_224", 48, img_size=48, dynamic_img_size=True)
    x = torch.randn(2, 3, size, size + 16)
    torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize("kwargs", [{}, {"qk_norm": True}, {"qkv_bias": False}])
def test_attention_equals_the_weights_inside_timm(kwargs):
    from saccade.backbones.timm_adapter import ViT

    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, depth=2, dynamic_img_size=True, **kwargs
    ).eval()
    for name, p in net.named_parameters():  # norms of q and k must matter
        if "q_norm" in name or "k_norm" in name:
            p.normal_(1, 0.3)
    ours = ViT(net, BackboneConfig(image_size=32))
    x = torch.randn(2, 3, 32, 32)
    mine = ours.attention(x)
    seen = []
    last = net.blocks[-1].attn
    last.fused_attn = False  # timm's explicit path passes its weights through attn_drop
    last.attn_drop.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    net(x)
    torch.testing.assert_close(mine, seen[0])
    assert mine.shape == (2, 3, 5, 5)


@torch.no_grad()
def test_a_vit_that_norms_after_pooling_keeps_timms_vector():
    name = "vit_little_patch16_reg4_gap_256"
    ours, theirs, x = pair(name, 32, img_size=32)
    torch.testing.assert_close(ours(x), theirs(x))
    y = ours.encode(ours.tokens(x))  # every token normed
    torch.testing.assert_close(y, theirs.fc_norm(theirs.forward_features(x)))
    assert ours.prefix == 4


@pytest.mark.parametrize("name", ["resnet18", "vit_nano_patch8_64", "convnext_atto"])
def test_keys_are_timms(name):
    ours = create(BackboneConfig(name=name, image_size=64))
    timms = {"vit_nano_patch8_64": "vit_tiny_patch16_224"}.get(name, name)
    kwargs = {"depth": 6} if name.startswith("vit") else {}
    assert list(timm_state(ours)) == list(
        timm.create_model(timms, num_classes=0, **kwargs).state_dict()
    )
