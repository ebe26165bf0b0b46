import pytest
import timm
import torch

from saccade import weights
from saccade.backbones import create
from saccade.backbones.relative import RelativeViT
from saccade.backbones.timm_state import load_timm_state, timm_state
from saccade.nn.positions import sincos_2d
from saccade.recipe import BackboneConfig, Normalize


def theirs(shared, size=16):
    net = timm.create_model(
        "beit_base_patch16_224",
        num_classes=0,
        img_size=size,
        patch_size=4,
        embed_dim=96,
        depth=6,
        num_heads=3,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
    )
    return net.eval()


def made(size=16, shared=True):
    """With tables and biases that are not at their start, which hides mistakes."""
    torch.manual_seed(0)
    cfg = BackboneConfig(name="beit_pico_shared_patch4_32", image_size=size)
    net = (create(cfg) if shared else RelativeViT(theirs(False, size), cfg)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_tokens_map_and_vector_equal_timms(shared):
    net, other = made(shared=shared), theirs(shared)
    other.load_state_dict(timm_state(net))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(net(x), other(x))
    tokens = other.fc_norm(other.forward_features(x))  # timm norms after pooling
    torch.testing.assert_close(net.encode(net.tokens(x)), tokens)
    torch.testing.assert_close(net.layers(x, 2)[-1], tokens)
    torch.testing.assert_close(net.features(x).flatten(2).mT, tokens[:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_attention_is_the_softmax_of_scores_and_distances(shared):
    net, x = made(shared=shared), torch.randn(2, 3, 16, 16)
    net.net.fc_norm = torch.nn.Identity()
    (before, after), block = net.layers(x, 2), net.net.blocks[-1]
    weights, heads = net.attention(x), block.attn.num_heads
    v = torch.nn.functional.linear(block.norm1(before), block.attn.qkv.weight)[..., -net.dim :]
    v = (v + block.attn.v_bias).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, heads, P, d]
    y = before + block.gamma_1 * block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    y = y + block.gamma_2 * block.mlp(block.norm2(y))
    torch.testing.assert_close(y, after, atol=1e-5, rtol=1e-4)
    encoded, row = net.encode_and_look(net.tokens(x))
    assert torch.equal(row, weights[:, :, 0])
    assert torch.equal(encoded, net.encode(net.tokens(x)))


@torch.no_grad()
def test_a_picture_moved_by_one_patch_moves_the_attention_of_patches():
    """Without CLS, attention of the first block knows patches by their distance only."""
    net = made()
    bias = net._shared(net.grid)[:, 1:, 1:].unflatten(1, (4, 4)).unflatten(3, (4, 4))
    assert torch.equal(bias[:, 0, 0, 1, 2], bias[:, 2, 1, 3, 3])
    assert not torch.equal(bias[:, 0, 0, 1, 2], bias[:, 1, 2, 0, 0])


@torch.no_grad()
def test_a_table_for_a_larger_picture_keeps_the_entries_of_cls_and_its_center():
    net = made()
    table = net.net.rel_pos_bias.relative_position_bias_table
    small, large = net._shared((4, 4)), net._shared((8, 6))
    assert large.shape == (3, 49, 49)
    assert torch.equal(large[:, 0, 1], table[-3])
    assert torch.equal(large[:, 1, 0], table[-2])
    assert torch.equal(large[:, 0, 0], table[-1])
    assert net.features(torch.randn(1, 3, 32, 24)).shape == (1, 96, 8, 6)
    torch.testing.assert_close(large[:, 1, 1], small[:, 1, 1], atol=0.2, rtol=0)


@torch.no_grad()
def test_weights_of_another_size_give_what_the_network_gives_at_that_size():
    small, large = made(16), made(32)
    report = load_timm_state(large, timm_state(small))
    assert report.resized == ("rel_pos_bias.relative_position_bias_table",)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(large(x), small(x))


def test_timm_reads_what_was_saved(tmp_path):
    net = made()
    cfg = BackboneConfig(name="beit_pico_shared_patch4_32", image_size=16)
    weights.save_backbone(tmp_path, net, cfg, Normalize(), {})
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(other(x), net(x))


def test_a_part_of_the_patches_is_refused_as_are_fixed_positions():
    net = made()
    with pytest.raises(ValueError, match="15 patches of 16 are given"):
        net.encode(torch.randn(1, 15, 96))
    with pytest.raises(ValueError, match="knows distances only"):
        net.fix_positions(sincos_2d((4, 4), 96))
    assert net.positions(16, 32).eq(0).all()
    assert net.positions(16, 32).shape == (1, 32, 96)


def test_tables_in_every_block_are_for_one_size():
    net = made(shared=False)
    assert not any(k.startswith("rel_pos_bias") for k in timm_state(net))
    with pytest.raises(ValueError, match=r"for \(4, 4\) patches, not \(8, 8\)"):
        net(torch.randn(1, 3, 32, 32))
