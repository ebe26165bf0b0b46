import math

import pytest
import torch
import torch.nn.functional as F
from toys import colored

from saccade import backbones
from saccade.backbones.presets import OWN
from saccade.evals.features import weights_hash
from saccade.nn.palette import nearest
from saccade.recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize


def net(causal=True, **settings):
    torch.manual_seed(0)
    return colored(causal, **settings).eval()


def some_tokens(b=2, side=8, colors=8):
    return torch.randint(colors, (b, side, side), generator=torch.Generator().manual_seed(0))


def pictures(b=2, side=8):
    return torch.randn(b, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_network_is_the_equations_written_out():
    for causal in (True, False):
        made, tokens = net(causal, image_size=3), some_tokens(side=3)
        with torch.no_grad():
            for p in made.parameters():
                if p.ndim == 1:
                    p.add_(0.1 * torch.randn_like(p))
            want = torch.stack([by_hand(made, t.flatten().tolist()) for t in tokens])
            torch.testing.assert_close(made.scores(made.encode(tokens)), want, atol=1e-5, rtol=1e-4)


def by_hand(made, tokens):
    """Scores of one picture, place by place and head by head."""
    norm = lambda h, g: g * h / (h.square().mean() + 1e-5).sqrt()  # noqa: E731
    entering = [made.embed.weight[t] for t in tokens]
    if made.causal:
        entering = [made.start, *entering[:-1]]
    h = [e + p for e, p in zip(entering, made.positions, strict=True)]
    for block in made.blocks:
        x = [norm(v, block.norm1.weight) for v in h]
        q, k, v = zip(*((block.attn.qkv.weight @ u).split(16) for u in x), strict=True)
        for i in range(len(h)):
            seen, heads = range(i + 1) if made.causal else range(len(h)), []
            for part in (slice(0, 8), slice(8, 16)):
                s = torch.stack([q[i][part] @ k[j][part] / math.sqrt(8) for j in seen]).softmax(0)
                heads.append(sum(s[n] * v[j][part] for n, j in enumerate(seen)))
            h[i] = h[i] + block.attn.proj.weight @ torch.cat(heads)
        for i in range(len(h)):
            y = block.mlp.fc1.weight @ norm(h[i], block.norm2.weight)
            h[i] = h[i] + block.mlp.fc2.weight @ (y * torch.sigmoid(1.702 * y))
    return torch.stack([made.output.weight @ norm(v, made.norm.weight) for v in h])


def test_no_gradient_comes_from_a_pixels_own_color_or_later_ones():
    made = net(image_size=2)
    tokens = torch.tensor([[[3, 5], [0, 6]]])  # each color once
    for place in range(4):
        made.zero_grad()
        made.scores(made.encode(tokens))[0, place].sum().backward()
        reached = made.embed.weight.grad.abs().sum(1) > 0
        assert set(reached.nonzero().flatten().tolist()) == set([3, 5, 0, 6][:place])


def test_changing_a_pixel_changes_the_places_behind_it_alone():
    made, tokens = net(), some_tokens(1)
    other = tokens.clone()
    other[0, 2, 3] = (tokens[0, 2, 3] + 1) % 8  # pixel 19
    with torch.no_grad():
        changed = (made.encode(tokens) != made.encode(other))[0].any(1)
    assert changed.nonzero().flatten().tolist() == list(range(20, 64))


def test_a_network_that_sees_all_is_blind_to_order_without_positions():
    made, tokens = net(causal=False), some_tokens(1)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    mixed = tokens.flatten(1)[:, order].view_as(tokens)
    with torch.no_grad():
        assert not torch.allclose(made.encode(tokens)[:, order], made.encode(mixed), atol=1e-3)
        made.positions.zero_()
        torch.testing.assert_close(
            made.encode(tokens)[:, order], made.encode(mixed), atol=1e-5, rtol=1e-4
        )


def test_with_all_pixels_hidden_only_positions_matter():
    made, tokens = net(causal=False), some_tokens(2)
    hidden = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        a, b = made.encode(tokens, hidden)
        assert torch.equal(a, b)
        hidden[:, 0, 0] = False
        a, b = made.encode(torch.stack([tokens[0], (tokens[0] + 1) % 8]), hidden)
        assert not torch.equal(a, b)


def test_layers_are_what_each_norm_gives_and_the_mean_counts_the_start():
    made, x = net(), pictures()
    seen = {}
    for i, norm in enumerate((*(b.norm1 for b in made.blocks), made.norm)):
        norm.register_forward_hook(lambda _, __, y, i=i: seen.update({i: y}))
    with torch.no_grad():
        found = made.layers(x)
    assert len(found) == len(seen) == 3
    for layer, y in zip(found, seen.values(), strict=True):
        assert y.shape == (2, 64, 16)
        torch.testing.assert_close(layer, y.mean(1))


@pytest.mark.parametrize(("layer", "place"), [("last", 6), ("middle", 3), (0, 0), (6, 6), (2, 2)])
def test_the_vector_is_that_of_the_chosen_layer(layer, place):
    cfg = BackboneConfig(name="igpt_pico_16", image_size=4, layer=layer)
    made, x = backbones.create(cfg), pictures(side=4)
    with torch.no_grad():
        torch.testing.assert_close(made(x), made.layers(x)[place])
        torch.testing.assert_close(made.features(x).mean((2, 3)), made(x))


def test_features_that_are_kept_know_their_layer():
    assert weights_hash(net(layer=1)) != weights_hash(net(layer=2))
    assert weights_hash(net(layer=1)) == weights_hash(net(layer=1))


def test_tokens_undo_what_the_pictures_were_normalized_by():
    made = net(normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD))
    x = torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (CIFAR_MEAN, CIFAR_STD))
    tokens = made.tokens((x / 255 - mean) / std)
    for b, i, j in ((0, 0, 0), (1, 3, 7), (1, 7, 0)):
        pixel = x[b, :, i, j] / 127.5 - 1
        assert tokens[b, i, j] == (made.palette - pixel).square().sum(1).argmin()
    painted = (255 * (made.paint(tokens) * std + mean)).round()
    want = (127.5 * (made.palette[tokens] + 1)).round().permute(0, 3, 1, 2)
    assert torch.equal(painted, want)


def test_painting_and_naming_all_512_colors_gives_them_back():
    made = net(colors=512)
    tokens = torch.arange(512).view(8, 8, 8)
    assert torch.equal(made.tokens(made.paint(tokens)), tokens)
    g = torch.Generator().manual_seed(0)
    made.set_palette(torch.rand(512, 3, generator=g) * 2 - 1)
    assert made.fitted
    assert torch.equal(nearest(made.palette, made.palette), torch.arange(512))


def test_advancing_gives_the_places_of_the_whole_pass():
    made, tokens = net(), some_tokens(3)
    flat = tokens.flatten(1)
    with torch.no_grad():
        whole = made.encode(tokens)
        for given in (0, 1, 20):
            memory = made.memory(3)
            h = made.advance(flat[:, :given], 0, memory)
            torch.testing.assert_close(h, whole[:, given], atol=1e-5, rtol=1e-4)
            for i in range(given, 63):
                h = made.advance(flat[:, i : i + 1], i, memory)
                torch.testing.assert_close(h, whole[:, i + 1], atol=1e-5, rtol=1e-4)


def test_the_published_sizes_have_the_published_numbers_of_weights():
    for name, millions in {"s": 76, "m": 455, "l": 1362, "xl": 6801}.items():
        (full,) = (n for n in OWN if n.startswith(f"igpt_{name}_") and n[-2:] in ("32", "64"))
        with torch.device("meta"):
            made = backbones.create(BackboneConfig(name=full, image_size=32))
        assert sum(p.numel() for p in made.parameters()) // 10**6 == millions


def test_the_start_is_that_of_the_paper():
    cfg = BackboneConfig(name="igpt_nano_16", image_size=16)
    torch.manual_seed(0)
    made = backbones.create(cfg)
    for tensor, std in (
        (made.embed.weight, 0.02),
        (made.start, 0.02),
        (made.positions, 0.01),
        (made.blocks[3].attn.qkv.weight, 128**-0.5),
        (made.blocks[3].attn.proj.weight, (128 * 6) ** -0.5),
        (made.blocks[3].mlp.fc1.weight, 0.02),
        (made.blocks[3].mlp.fc2.weight, 0.02),
    ):
        off = max(0.05, 3 * (2 * tensor.numel()) ** -0.5)  # of the estimate from so many draws
        assert tensor.std().item() == pytest.approx(std, rel=off)
    assert made.output.weight.abs().max() == 0
    assert not [n for n, _ in made.named_parameters() if n.endswith("bias")]


def test_another_size_of_picture_resamples_the_positions():
    made = net()
    want = F.interpolate(made.positions.T.view(1, 16, 8, 8), (4, 8), mode="bicubic", antialias=True)
    made.embed.weight.data.zero_()
    made.start.data.zero_()
    with torch.no_grad():
        h = made.layers(torch.zeros(1, 3, 4, 8))[0]
        flat = want[0].flatten(1).T
        first = flat / (flat.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(h[0], first.mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channels": 1}, "backbone.channels=1"),
        ({"drop_path": 0.1}, "backbone.drop_path=0.1"),
        ({"stem": "small"}, "backbone.stem=small"),
        ({"layer": 7}, "backbone.layer=7.*0 to 6"),
        ({"layer": -1}, "backbone.layer=-1"),
    ],
)
def test_settings_it_has_no_use_for_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        backbones.create(BackboneConfig(name="igpt_pico_16", image_size=4, **settings))


def test_networks_without_a_choice_of_layers_refuse_one():
    with pytest.raises(ValueError, match=r"backbone\.layer=middle"):
        backbones.create(BackboneConfig(name="resnet10_w16", image_size=32, layer="middle"))
