import math

import pytest
import torch
from torch import nn

from saccade import backbones, microscope
from saccade.attention import (
    DisentangledNonLocal,
    GlobalContext,
    LambdaLayer,
    LocalLambda,
    LocalRelation,
    NonLocal,
)
from saccade.core import Backbone
from saccade.recipe import BackboneConfig


class Layers(Backbone):
    """Mechanisms in a row, on the picture itself."""

    dim, channels, image_size = 8, 8, 6

    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.features(x).mean((2, 3))


def network(name, image_size):
    torch.manual_seed(0)
    return backbones.create(BackboneConfig(name=name, image_size=image_size)).eval()


@pytest.mark.parametrize(
    ("name", "columns"), [("vit_pico_patch4_32", 6), ("beit_pico_shared_patch4_32", 4)]
)
@torch.no_grad()
def test_a_layer_of_a_transformer_says_its_softmax_over_the_patches(name, columns):
    net = network(name, 16)
    x = torch.randn(1, 3, 16, 4 * columns)
    found = microscope.look(net, x, [(0.5, 0.5)])
    assert [f.layer for f in found] == [f"blocks.{i}.attn" for i in range(6)]
    whole = net.attention(x)[0]  # of the last block, CLS first
    cell = 2 * columns + columns // 2
    assert found[-1].cells.tolist() == [cell]
    torch.testing.assert_close(found[-1].maps[:, 0].flatten(1), whole[:, 1 + cell, 1:])


@torch.no_grad()
def test_looking_changes_nothing():
    for name, size in (("vit_pico_patch4_32", 16), ("nl_resnet10_w32", 32)):
        net, x = network(name, size), torch.randn(1, 3, size, size)
        before = net.features(x)
        microscope.look(net, x, [(0.1, 0.9)])
        assert torch.equal(net.features(x), before)


@pytest.fixture(scope="module")
def swin():
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    net = SwinTransformer(
        32, 2, 3, 0, embed_dim=8, depths=(2,), num_heads=(2,), window_size=5, strict_img_size=False
    ).eval()

    class Small(Layers):
        channels, image_size = 3, 32

        def features(self, x):
            return self.body[0].forward_features(x).permute(0, 3, 1, 2)

    return Small(net)


def test_a_window_ends_where_the_gradient_does(swin):
    """Shifted windows of 5 on a map of 16 x 12, which 5 does not divide."""
    x = torch.randn(1, 3, 32, 24)
    points = [(0.1, 0.1), (0.5, 0.5), (0.95, 0.3), (0.4, 0.97)]
    found = microscope.look(swin, x, points)
    blocks = swin.body[0].layers[0].blocks
    assert len(found) == len(blocks) == 2
    for seen, block in zip(found, blocks, strict=True):
        y = torch.randn(1, 16, 12, 8, requires_grad=True)
        made = block._attn(y).flatten(1, 2)[0]
        for i, cell in enumerate(seen.cells.tolist()):
            (grad,) = torch.autograd.grad(made[cell].sum(), y, retain_graph=True)
            reached = grad[0].abs().sum(-1) > 1e-12
            assert torch.equal(seen.maps[:, i].amin(0) > 1e-20, reached)


def test_rows_of_windows_without_padding_sum_to_1(swin):
    found = microscope.look(swin, torch.randn(1, 3, 40, 20), [(0.5, 0.5)])  # 20 x 10 cells
    for seen in found:
        assert seen.maps.sum((2, 3)).flatten().tolist() == pytest.approx([1.0, 1.0])


def test_queries_that_fall_into_one_cell_are_asked_once():
    net = Layers(GlobalContext(8))
    (seen,) = microscope.look(net, torch.randn(1, 8, 2, 2), [(0.1, 0.1), (0.2, 0.2), (0.9, 0.1)])
    assert seen.cells.tolist() == [0, 1]


def test_degeneracy_is_the_mean_cosine_of_all_pairs_of_rows():
    torch.manual_seed(0)
    layer = NonLocal(8, pairing="embedded_gaussian")
    nn.init.normal_(layer.theta.weight)
    nn.init.normal_(layer.phi.weight)
    net, x = Layers(layer).eval(), torch.randn(1, 8, 4, 4)
    (found,) = microscope.degeneracy(net, x)
    rows = layer.attention(x)[0].tolist()
    cosines = [
        sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
        for a in rows
        for b in rows
    ]
    assert (found.layer, found.part, found.queries) == ("body.0", "attention", 16)
    assert found.value == pytest.approx(sum(cosines) / 256, rel=1e-5)
    assert 0 < found.divergence < math.log(2)


def cosine(rows):
    """Mean over all pairs of rows."""
    pairs = [(a, b) for a in rows.tolist() for b in rows.tolist()]
    dots = [sum(p * q for p, q in zip(a, b, strict=True)) for a, b in pairs]
    lengths = [math.hypot(*a) * math.hypot(*b) for a, b in pairs]
    return sum(d / n for d, n in zip(dots, lengths, strict=True)) / len(pairs)


@torch.no_grad()
@pytest.mark.parametrize(
    "layer",
    [
        NonLocal(8, pairing="embedded_gaussian", norm=False),
        DisentangledNonLocal(8, temperature=1.0),
        LocalRelation(8, kernel=3, group=4, stride=2),
        LambdaLayer(8, 8, LocalLambda(3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_rows_stand_beside_what_goes_in_and_what_is_found(layer):
    torch.manual_seed(0)
    for p in layer.parameters():
        nn.init.normal_(p)
    net, x = Layers(layer).eval(), torch.randn(1, 8, 4, 4)
    found = microscope.degeneracy(net, x)[0]
    adds = isinstance(layer, NonLocal | DisentangledNonLocal)
    made = layer(x) - x if adds else layer(x)
    assert found.before == pytest.approx(cosine(x[0].flatten(1).mT), abs=1e-5)
    assert found.found == pytest.approx(cosine(made[0].flatten(1).mT), abs=1e-5)


@torch.no_grad()
def test_the_common_share_is_of_the_logits_and_none_is_left_by_whitening():
    torch.manual_seed(0)
    layer, x = NonLocal(8, pairing="embedded_gaussian"), torch.randn(1, 8, 4, 4)
    nn.init.normal_(layer.theta.weight)
    nn.init.normal_(layer.theta.bias)
    nn.init.normal_(layer.phi.weight)
    (found,) = microscope.degeneracy(Layers(layer).eval(), x)
    q, k, _ = layer.project(x)
    logits = (q @ k.mT)[0]
    share = logits.mean(0).var(correction=0) / logits.var(1, correction=0).mean()
    assert found.unary_share == pytest.approx(float(share), rel=1e-3)
    mean = layer.attention(x)[0].mean(0)
    assert found.entropy == pytest.approx(-float((mean * mean.log()).sum()) / math.log(16))

    white = DisentangledNonLocal(8, temperature=1.0)
    for weight in (white.query.weight, white.key.weight):
        nn.init.normal_(weight, std=0.3)
    pairwise, unary = microscope.degeneracy(Layers(white).eval(), x)
    assert pairwise.unary_share == pytest.approx(0, abs=1e-6)
    assert unary.unary_share == pytest.approx(1)


@torch.no_grad()
def test_cells_that_a_query_gives_nothing_leave_the_common_share():
    """As sharp softmaxes do: exp(-200) is 0."""
    logits = torch.randn(8, 8)
    logits[3, 5] = -200.0
    rows = logits.softmax(1)
    kept = logits[:, [j for j in range(8) if j != 5]]
    share = kept.mean(0).var(correction=0) / kept.var(1, correction=0).mean()
    assert rows[3, 5] == 0
    assert microscope._common(rows[None]) == pytest.approx(float(share), rel=1e-4)
    assert math.isnan(microscope._common(torch.eye(4)[None]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_femto_patch8_32", "swin_pico_patch4_window4_64"])
def test_a_transformers_layer_is_seen_from_its_attentions_input_to_its_output(name):
    net = network(name, 32)
    blocks = net.net.blocks if "vit" in name else net.net.layers[0].blocks
    seen = []
    blocks[0].attn.register_forward_hook(lambda m, given, made: seen.append((given[0], made)))
    found = microscope.degeneracy(net, torch.randn(1, 3, 32, 32))[0]
    x, y = seen[-1]
    flat = [t[:, 1:] if "vit" in name else t for t in (x, y)]  # CLS apart; windows of all cells
    before, after = (cosine(t.flatten(0, 1)) for t in flat)
    assert found.queries == (16 if "vit" in name else 64)
    assert (found.before, found.found) == pytest.approx((before, after), abs=1e-5)


def test_a_map_that_is_the_same_for_all_is_degenerate():
    (found,) = microscope.degeneracy(Layers(GlobalContext(8)), torch.randn(1, 8, 6, 6))
    assert found.value == pytest.approx(1)
    assert found.divergence == pytest.approx(0, abs=1e-6)
    assert found.unary_share == pytest.approx(1)


def test_weights_below_zero_have_no_entropy_and_no_share():
    layer = NonLocal(8, pairing="dot_product")
    (found,) = microscope.degeneracy(Layers(layer).eval(), torch.randn(1, 8, 6, 6))
    assert all(math.isnan(v) for v in (found.divergence, found.entropy, found.unary_share))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet10_w16", []),
        ("nl_resnet10_w32", ["attention"] * 2),
        ("dnl_resnet10_w32", ["pairwise", "unary"] * 2),
        ("gc_resnet10_w32", ["unary"] * 3),
        ("lambda_resnet10_w32", ["content", "position"] * 2),
        ("lr_net14_w32", ["attention"] * 4),
    ],
)
def test_every_family_with_attention_can_be_read(name, parts):
    net = network(name, 32)
    found = microscope.look(net, torch.randn(1, 3, 32, 32), [(0.3, 0.6)])
    assert [f.part for f in found] == parts
    assert list(dict.fromkeys(f.layer for f in found)) == microscope.layers(net)
