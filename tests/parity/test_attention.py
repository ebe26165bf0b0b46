"""Mechanisms of attention beside those of timm, lambda-networks and torch, at copied weights."""

import pytest
import timm
import torch
from lambda_networks import LambdaLayer as PublicLambda
from timm.layers import GlobalContext as TimmContext
from timm.layers.lambda_layer import LambdaLayer as TimmLambda
from timm.layers.non_local_attn import NonLocalAttn
from torch import nn

from saccade.attention import GlobalContext, GlobalLambda, LambdaLayer, LocalLambda, NonLocal
from saccade.attention.feature_pyramid_transformer import CrossAttention


def randomized(module):
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.eval()


def copy(layer, conv):
    layer.weight.data.copy_(conv.weight.flatten(1))
    layer.bias.data.copy_(conv.bias)


def test_non_local_is_timms_but_for_its_scale():
    theirs, ours = randomized(NonLocalAttn(16, rd_channels=8)), NonLocal(16).eval()
    pairs = ((ours.theta, theirs.t), (ours.phi, theirs.p), (ours.g, theirs.g), (ours.out, theirs.z))
    for layer, conv in pairs:
        copy(layer, conv)
    ours.norm.load_state_dict(theirs.norm.state_dict())
    ours.theta.weight.data *= 8**0.5 / 16**0.5  # timm: the root of the input's channels
    ours.theta.bias.data *= 8**0.5 / 16**0.5
    x = torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_global_context_is_timms_when_it_adds():
    theirs = randomized(TimmContext(16, fuse_add=True, fuse_scale=False, rd_ratio=0.25))
    ours = GlobalContext(16, ratio=4)
    mlp = theirs.mlp_add
    for layer, conv in ((ours.mask, theirs.conv_attn), (ours.fc1, mlp.fc1), (ours.fc2, mlp.fc2)):
        copy(layer, conv)
    ours.norm.load_state_dict(mlp.norm.state_dict())
    x = torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)  # its LN adds 1e-6


def fill(ours, theirs, *projections):
    """Projections of queries, keys and values, and both norms."""
    ours.qkv.weight.data.copy_(torch.cat([p.weight for p in projections]))
    ours.norm_q.load_state_dict(theirs.norm_q.state_dict())
    ours.norm_v.load_state_dict(theirs.norm_v.state_dict())


@pytest.mark.parametrize("scope", [5, 11])
def test_the_lambda_convolution_is_timms_without_its_bias(scope):
    theirs = randomized(TimmLambda(12, r=scope, num_heads=3, dim_head=4))
    ours = LambdaLayer(12, 12, LocalLambda(scope, depth=4), heads=3).eval()
    nn.init.zeros_(theirs.conv_lambda.bias)
    fill(ours, theirs, theirs.qkv)
    ours.positions.table.data.copy_(theirs.conv_lambda.weight[..., 0])
    x = torch.randn(2, 12, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_global_lambda_is_timms():
    theirs = randomized(TimmLambda(12, r=None, feat_size=(5, 5), num_heads=3, dim_head=4))
    ours = LambdaLayer(12, 12, GlobalLambda((5, 5), depth=4), heads=3).eval()
    fill(ours, theirs, theirs.qkv)
    ours.positions.table.data.copy_(theirs.pos_emb.flatten(0, 1)[..., None])
    x = torch.randn(2, 12, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def public(intra, **scope):
    theirs = PublicLambda(10, dim_out=12, dim_k=4, heads=3, dim_u=intra, **scope)
    return randomized(theirs)


@pytest.mark.parametrize("intra", [1, 2])
def test_the_lambda_convolution_is_lambda_networks_without_its_bias(intra):
    theirs = public(intra, r=5)
    ours = LambdaLayer(10, 12, LocalLambda(5, depth=4, intra=intra), heads=3).eval()
    fill(ours, theirs, theirs.to_q, theirs.to_k, theirs.to_v)
    nn.init.zeros_(theirs.pos_conv.bias)
    ours.positions.table.data.copy_(theirs.pos_conv.weight[:, :, 0])
    x = torch.randn(2, 10, 7, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("intra", [1, 2])
def test_the_global_lambda_is_lambda_networks(intra):
    theirs = public(intra, n=5)
    ours = LambdaLayer(10, 12, GlobalLambda((5, 5), depth=4, intra=intra), heads=3).eval()
    fill(ours, theirs, theirs.to_q, theirs.to_k, theirs.to_v)
    ours.positions.table.data.copy_(theirs.rel_pos_emb.flatten(0, 1))
    x = torch.randn(2, 10, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_public_lambda_resnet_has_a_bias_a_layer_more_than_ours():
    net = timm.create_model("resnet50")
    for unit in (u for i in range(1, 5) for u in net.get_submodule(f"layer{i}")):
        width = unit.conv2.in_channels
        unit.conv2 = PublicLambda(width, dim_out=width, dim_k=16, r=23, heads=4)
    assert sum(p.numel() for p in net.parameters()) == 14_995_848


def test_one_part_of_a_pyramids_attention_is_torchs_with_one_head():
    ours = randomized(CrossAttention(8, 1))
    theirs = nn.MultiheadAttention(8, 1, batch_first=True)
    theirs.in_proj_weight.data = torch.cat(
        [ours.query.weight * 8**0.5, ours.key.weight, ours.value.weight]
    )
    theirs.in_proj_bias.data = torch.cat([ours.query.bias * 8**0.5, ours.key.bias, ours.value.bias])
    nn.init.eye_(theirs.out_proj.weight)
    x, other = torch.randn(2, 8, 4, 3), torch.randn(2, 8, 2, 2)
    q, k = x.flatten(2).mT, other.flatten(2).mT
    y, rows = theirs(q, k, k)
    torch.testing.assert_close(ours(x, other).flatten(2).mT, y)
    torch.testing.assert_close(ours.attention(x, other), rows)
