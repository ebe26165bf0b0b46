import math

import pytest
import timm
import torch
from torch import nn
from toys import CLOCK, batch_for, build, noise

from saccade import backbones
from saccade.core import Clock, View
from saccade.methods.data2vec import SCALES, Data2Vec
from saccade.recipe import BackboneConfig


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def test_loss_is_the_mean_over_hidden_patches_written_as_loops():
    task, batch = build("data2vec"), batch_for("data2vec", b=2)
    x, net = batch.images[0], task.encoder
    mask = task.choose(batch.key, (4, 4))
    layers = task.teacher.module.layers(x, 2)
    y = layer_norm(sum(layer_norm(h) for h in layers) / 2)[:, 1:]
    tokens = net.embed(x).flatten(2).mT
    tokens = torch.where(mask[..., None], task.mask_token[0, 0], tokens) + net.table
    z = task.head(net.encode(tokens)[:, 1:])
    total = []
    for b, n in mask.nonzero().tolist():
        for a in (z[b, n] - y[b, n]).abs().tolist():
            total.append(a * a / 4 if a < 2 else a - 1)
    assert task(batch, CLOCK).loss.item() == pytest.approx(sum(total) / len(total), rel=1e-4)


def test_targets_have_mean_0_and_variance_1_over_channels():
    y = build("data2vec").target(batch_for("data2vec").images[0])
    assert y.shape == (8, 16, 16)
    assert y.mean(-1).abs().max() < 1e-5
    assert (y.var(-1, correction=0) - 1).abs().max() < 1e-3


def test_targets_are_whole_blocks_in_front_of_the_last_norm():
    encoder = backbones.create(BackboneConfig(name="vit_pico_patch4_32", image_size=32)).eval()
    nn.init.uniform_(encoder.net.norm.weight)
    x, outs = torch.randn(1, 3, 32, 32), []
    for block in encoder.net.blocks:
        block.register_forward_hook(lambda *a: outs.append(a[2]))
    found = encoder.layers(x, 3, normed=False)
    assert all(torch.equal(a, b) for a, b in zip(found, outs[3:6], strict=True))
    normed = encoder.layers(x, 3)
    torch.testing.assert_close(normed[0], encoder.net.norm(found[0]))


def test_guessing_zero_costs_the_closed_form_of_normal_features():
    """E smooth_l1(z) with beta 2 of normal z: the square below 2, the line above."""
    task = build("data2vec")
    task.head = nn.Linear(16, 512)
    nn.init.zeros_(task.head.weight)
    nn.init.zeros_(task.head.bias)
    task.target = lambda x: layer_norm(torch.randn(len(x), 16, 512))
    density, inside = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    want = 0.25 * (inside - 4 * density) + 2 * density - (1 - inside)
    assert want == pytest.approx(0.247, abs=2e-3)
    assert task(batch_for("data2vec"), CLOCK).loss.item() == pytest.approx(want, rel=0.02)


def test_encoder_sees_no_hidden_pixel_and_the_teacher_sees_all():
    task, batch = build("data2vec").eval(), batch_for("data2vec", b=2)
    x = batch.images[0]
    mask = task.choose(batch.key, (4, 4))
    hidden = mask.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    other = type(batch)(images=[x + 100 * hidden], index=batch.index, key=batch.key)
    assert torch.equal(task(batch, CLOCK).features, task(other, CLOCK).features)
    assert not torch.equal(task.target(x), task.target(x + 100 * hidden))


def test_at_most_120_of_196_patches_are_hidden():
    count = int(build("data2vec").cfg.mask_ratio * 196)
    assert count == 120
    masks = build("data2vec").choose(noise(b=300, sizes=(1,)).key, (4, 4))
    assert masks.sum(1).max() == int(0.615 * 16)


def test_teacher_has_no_gradient_and_follows_with_a_constant_momentum():
    task, batch = build("data2vec", momentum=0.75), batch_for("data2vec")
    task(batch, CLOCK).loss.backward()
    pairs = list(zip(task.teacher.module.parameters(), task.encoder.parameters(), strict=True))
    assert all(t.grad is None and torch.equal(t, s) for t, s in pairs)
    before = [t.clone() for t, _ in pairs]
    with torch.no_grad():
        for _, s in pairs:
            s.add_(1.0)
    task.after_update(Clock(9, 10, 5))
    for (t, _), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(t, old + 0.25)


def test_loss_reads_no_prediction_at_visible_patches():
    task, batch, held = build("data2vec"), batch_for("data2vec"), []
    task.head.register_forward_hook(lambda module, given, z: held.append(z))
    (gradient,) = torch.autograd.grad(task(batch, CLOCK).loss, held)
    assert (gradient.abs().sum(-1) > 0).equal(task.choose(batch.key, (4, 4)))


def test_layer_scale_starts_as_published_and_the_mask_token_decays_where_cls_does_not():
    cfg = BackboneConfig(name="beit_atto_shared_patch4_32", image_size=32)
    plain = Data2Vec(Data2Vec.Config(last_layers=2, views=(View(size=32),)), backbones.create(cfg))
    for net in (plain.encoder.net, plain.teacher.module.net):
        assert all(b.gamma_1.eq(1e-4).all() and b.gamma_2.eq(1e-4).all() for b in net.blocks)
    rest, cls = plain.groups()
    assert [n for n, _ in cls.params] == ["encoder.net.cls_token"]
    assert cls.decay_scale == 0
    assert any(n == "mask_token" and p.ndim == 3 for n, p in rest.params)  # 1-D ones do not decay
    layered = timm.create_model("vit_tiny_patch16_224", depth=1, init_values=0.1)
    scaled = [n for n, _ in layered.named_parameters() if n.endswith(SCALES)]
    assert scaled == ["blocks.0.ls1.gamma", "blocks.0.ls2.gamma"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last_layers": 3}, "method.last_layers: 3, but the backbone has 2 blocks"),
        ({"mask_ratio": 0.01}, "method.mask_ratio: 0.01 hides 0 of 16 patches"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build("data2vec", **settings)
