import subprocess
import sys

import pytest
import torch
from torch import nn

from saccade import backbones
from saccade.backbones.timm_adapter import build, native_size
from saccade.backbones.timm_state import load_timm_state, timm_state
from saccade.core import Backbone
from saccade.recipe import BackboneConfig

VIT = "vit_nano_patch8_64"


def vit(size=16, name=VIT, **settings):
    torch.manual_seed(0)
    return backbones.create(BackboneConfig(name=name, image_size=size, **settings)).eval()


def resnet(size=32, **settings):
    return backbones.create(BackboneConfig(name="resnet10_w16", image_size=size, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet5"}, "unknown backbone 'resnet5'; did you mean resnet50?"),
        ({"name": "vit_nano_patch8"}, "did you mean vit_nano_patch8_64?"),
        ({"name": "zzzzzzzzzz"}, "choose from beit_atto"),
        ({"name": "efficientnet_b0"}, "family efficientnet; choose a ResNet"),
        ({"name": VIT, "stem": "small"}, "stem=small is for ResNets"),
        ({"name": VIT, "image_size": 100}, "image_size=100 .* choose 96 or 104"),
        ({"name": VIT, "image_size": 4}, "choose 8"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        backbones.create(BackboneConfig(**settings))
    assert "\n" not in str(error.value)


def test_listing_names_imports_no_torch():
    code = "import sys; from saccade import backbones as b; b.names(), b.summary('resnet18')"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_preset_says_what_it_is():
    assert "embed_dim=192" in backbones.summary("vit_nano_patch4_32")
    assert "timm" in backbones.summary("resnet50")


@pytest.mark.parametrize(
    ("size", "stem", "side"),
    [(64, "auto", 8), (64, "paper", 2), (96, "auto", 3), (96, "small", 12)],
)
def test_the_small_stem_keeps_the_map_four_times_larger(size, stem, side):
    encoder = resnet(size, stem=stem).eval()
    with torch.no_grad():
        assert encoder.features(torch.randn(1, 3, size, size)).shape == (1, 128, side, side)


def test_the_small_stem_is_one_convolution_without_pooling():
    net = backbones.create(BackboneConfig(name="resnet18", image_size=32)).net
    assert (net.conv1.kernel_size, net.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(net.maxpool, nn.Identity)


@pytest.mark.parametrize("name", ["resnet10_w16", VIT, "convnext_atto"])
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(name, channels):
    cfg = BackboneConfig(name=name, image_size=32, channels=channels)
    encoder = backbones.create(cfg).eval()
    with torch.no_grad():
        a, b = encoder(torch.zeros(2, channels, 32, 32)), encoder(torch.ones(2, channels, 32, 32))
    assert encoder.channels == channels
    assert not torch.equal(a, b)


def test_drop_path_acts_in_training_only():
    encoder = vit(drop_path=0.5)
    x = torch.randn(1, 3, 16, 16).expand(8, -1, -1, -1)
    with torch.no_grad():
        still, moved = encoder.eval()(x), encoder.train()(x)
    assert torch.allclose(still, still[:1].expand_as(still), atol=1e-5)
    assert not torch.allclose(moved, moved[:1].expand_as(moved), atol=1e-3)
    swin = BackboneConfig(name="swin_tiny_patch4_window7_224", image_size=32)
    rates = [m.drop_prob for m in build(swin).modules() if type(m).__name__ == "DropPath"]
    assert rates == []  # timm's default for Swin is 0.1


def test_fixed_positions_are_the_only_ones_and_do_not_train():
    encoder = vit()
    table = torch.randn(4, 192)
    before = encoder.tokens(x := torch.randn(1, 3, 16, 16)) - encoder.net.pos_embed[:, 1:]
    encoder.fix_positions(table)
    torch.testing.assert_close(encoder.tokens(x), before + table)
    assert not encoder.net.pos_embed.requires_grad
    assert encoder.net.pos_embed[:, 0].abs().max() == 0
    encoder(x).sum().backward()
    assert encoder.net.pos_embed.grad is None


def test_fixed_positions_where_registers_have_no_row():
    encoder = vit(28, "vit_small_patch14_reg4_dinov2")
    encoder.fix_positions(torch.ones(4, 384))
    assert torch.equal(encoder.net.pos_embed, torch.ones(1, 4, 384))


def test_gradient_reaches_positions_of_a_resized_picture():
    encoder = vit(32)
    y = encoder(torch.randn(1, 3, 16, 24))
    (y * torch.randn_like(y)).sum().backward()  # a norm makes the plain sum constant
    assert (encoder.net.pos_embed.grad[0].norm(dim=-1) > 0).all()


def test_a_picture_that_cuts_patches_is_refused():
    with pytest.raises(ValueError, match=r"20 x 16 pixels .* multiples of 8"):
        vit()(torch.randn(1, 3, 20, 16))


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="last=7: the backbone has 6 blocks"):
        vit().layers(torch.randn(1, 3, 16, 16), 7)


def test_attention_of_blocks_without_one_softmax_is_refused():
    encoder = vit(32, "vit_pwee_patch16_reg1_gap_256")
    with pytest.raises(ValueError, match="ParallelScalingBlock"):
        encoder.attention(torch.randn(1, 3, 32, 32))


def test_a_table_for_another_size_is_resized_and_reported():
    small, large = vit(16), vit(32)
    nn.init.constant_(small.net.pos_embed, 0.25)  # resizing a constant gives that constant
    report = load_timm_state(large, timm_state(small))
    assert report.resized == ("pos_embed",)
    torch.testing.assert_close(large.net.pos_embed, torch.full((1, 17, 192), 0.25))


def test_a_table_of_the_same_size_stays_to_the_bit():
    one, other = vit(16), vit(16)
    nn.init.normal_(one.net.pos_embed)
    assert load_timm_state(other, timm_state(one)).resized == ()
    assert torch.equal(other.net.pos_embed, one.net.pos_embed)
    assert torch.equal(other.positions(16, 16), one.net.pos_embed[:, 1:])


@pytest.mark.parametrize(
    ("name", "patch", "dim", "depth", "size", "millions"),
    [
        ("vit_tiny_patch16_224", 16, 192, 12, 224, 5.72),
        ("vit_small_patch16_224", 16, 384, 12, 224, 22.05),
        ("vit_base_patch16_224", 16, 768, 12, 224, 86.567656),
        ("vit_large_patch16_384", 16, 1024, 24, 384, 304.72),
    ],
)
def test_a_vit_has_the_parameters_of_the_paper(name, patch, dim, depth, size, millions):
    with torch.device("meta"):
        encoder = backbones.create(BackboneConfig(name=name, image_size=size))
    tokens = (size // patch) ** 2 + 1
    front = dim * (3 * patch**2 + 1) + dim + dim * tokens
    body = depth * (12 * dim**2 + 13 * dim) + 2 * dim
    assert sum(p.numel() for p in encoder.parameters()) == front + body
    assert (front + body + (dim + 1) * 1000) / 1e6 == pytest.approx(millions, abs=5e-3)


def test_what_does_not_fit_is_reported_or_refused():
    encoder = resnet()
    state = timm_state(encoder) | {"fc.weight": torch.zeros(3, 128)}
    counter = state.pop("bn1.num_batches_tracked")
    report = load_timm_state(encoder, state)
    assert (report.unexpected, report.missing) == (("fc.weight",), ("bn1.num_batches_tracked",))
    assert counter == 0
    with pytest.raises(ValueError, match=r"conv1\.weight is \[16, 5, 3, 3\], not \[16, 3, 3, 3\]"):
        load_timm_state(encoder, timm_state(resnet(channels=5)))
    del state["layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"no layer1\.0\.conv1\.weight for this backbone"):
        load_timm_state(encoder, state)


class Foreign(Backbone):
    def features(self, x):
        return x

    def forward(self, x):
        return x.mean((2, 3))


def test_an_encoder_of_another_library_is_refused_by_name():
    with pytest.raises(ValueError, match="Foreign is not one of timm's networks"):
        timm_state(Foreign())


def test_channels_last_changes_nothing():
    encoder = resnet().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = encoder(x)
        other = encoder.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(plain, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_nano_patch4_32", 32), ("resnet50", 224), ("vit_small_patch14_dinov2", 518)],
)
def test_native_size(name, size):
    assert native_size(name) == size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "patches of 16; choose 192 or 208"),
        ("deit_tiny_distilled_patch16_224", "patches of 16; choose 192 or 208"),
        ("vit_tiny_r_s16_p8_224", "patches of 'vit_tiny_r_s16_p8_224'; choose 224"),
    ],
)
def test_sizes_that_patches_do_not_divide_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        backbones.create(BackboneConfig(name=name, image_size=200))


def test_pictures_of_such_a_size_are_refused_too():
    net = backbones.create(BackboneConfig(name="deit_tiny_distilled_patch16_224", image_size=32))
    for look in (net, net.features):
        with pytest.raises(ValueError, match="40 x 32 pixels do not divide into patches of 16"):
            look(torch.zeros(1, 3, 40, 32))
