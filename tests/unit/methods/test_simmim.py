import math
from dataclasses import replace

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from toys import CLOCK, ConvNet, PatchNet, batch_for, build, noise, views

from saccade import backbones
from saccade.backbones.timm_adapter import StagedNet
from saccade.core import View
from saccade.engine import optim
from saccade.methods.simmim import RECIPES, SimMIM
from saccade.nn.patches import enlarged
from saccade.recipe import BackboneConfig


def swin(size=64):
    """Two blocks of windows of 2, a map of stride 32."""
    torch.manual_seed(0)
    net = SwinTransformer(
        size,
        4,
        num_classes=0,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=2,
        drop_path_rate=0.0,
        strict_img_size=False,
    )
    return StagedNet(net, "swin", BackboneConfig(image_size=size), frozenset())


def staged(mask_size=32, size=64):
    encoder = swin(size)
    torch.manual_seed(0)
    return SimMIM(SimMIM.Config(mask_size=mask_size, views=(View(size=size),)), encoder)


def pixels_of(task, batch):
    """1 where a pixel is hidden, from the cells one by one."""
    cells, side = task.choose(batch.key), task.cfg.mask_size
    hidden = torch.zeros(len(cells), 1, *batch.images[0].shape[2:])
    for b, i, j in cells.nonzero().tolist():
        hidden[b, 0, side * i : side * (i + 1), side * j : side * (j + 1)] = 1
    return hidden


@pytest.mark.parametrize(("size", "cell", "hidden"), [(192, 32, 22), (224, 32, 30)])
def test_published_counts_of_hidden_cells(size, cell, hidden):
    task = SimMIM(SimMIM.Config(mask_size=cell, views=(View(size=size),)), PatchNet())
    assert task.choose(batch_for("simmim").key).sum((1, 2)).eq(hidden).all()


def test_every_cell_is_hidden_equally_often():
    task = build("simmim")
    key = noise(b=2000, sizes=(1,)).key
    share = task.choose(key).float().mean(0)
    assert share.mean().item() == pytest.approx(10 / 16)  # ceil(.6 * 16)
    assert (share - 10 / 16).abs().max() < 5 * (10 / 16 * 6 / 16 / 2000) ** 0.5


def test_cells_are_repeated_to_the_patches_in_them():
    cells = torch.tensor([[[True, False], [False, True]]])
    want = torch.zeros(1, 6, 6, dtype=torch.bool)
    want[0, :3, :3] = want[0, 3:, 3:] = True
    assert torch.equal(enlarged(cells, 3), want)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_loss_is_the_mean_over_hidden_pixels_written_as_loops(kind):
    if kind == "vit":
        task, batch = build("simmim", mask_size=16), batch_for("simmim", b=2)
    else:
        task, batch = staged(), noise(b=2, sizes=(64,))
    x, hidden = batch.images[0], pixels_of(task, batch)
    y = task.encode(x, task.choose(batch.key))  # [B, D, h, w]
    s, total, count = task.encoder.stride, 0.0, 0
    weight = task.pixels.weight[:, :, 0, 0]
    for b in range(2):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                out = (weight @ y[b, :, i, j] + task.pixels.bias).view(3, s, s).detach()
                at = (slice(i * s, i * s + s), slice(j * s, j * s + s))
                own = hidden[b, 0][at]
                total += float(((out - x[b][(slice(None), *at)]).abs() * own).sum())
                count += 3 * int(own.sum())
    assert task(batch, CLOCK).loss.item() == pytest.approx(total / count, rel=1e-4)


def test_hiding_all_and_guessing_zero_costs_the_mean_absolute_pixel():
    task, batch = build("simmim", mask_ratio=1.0), batch_for("simmim")
    nn.init.zeros_(task.pixels.weight)
    nn.init.zeros_(task.pixels.bias)
    step = task(batch, CLOCK)
    assert step.loss.item() == pytest.approx(batch.images[0].abs().mean().item(), rel=1e-5)
    assert step.logs["explained"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_encoder_sees_no_hidden_pixel_and_every_visible_one(kind):
    task, batch = (
        (build("simmim"), batch_for("simmim", b=2))
        if kind == "vit"
        else (staged(), noise(b=2, sizes=(64,)))
    )
    task.eval()
    x, hidden, cells = batch.images[0], pixels_of(task, batch), task.choose(batch.key)
    seen = task.encode(x, cells)
    assert torch.equal(task.encode(x + 100 * hidden, cells), seen)
    assert not torch.equal(task.encode(x + (1 - hidden), cells), seen)


def test_loss_ignores_what_is_guessed_for_visible_pixels():
    task, batch = staged(), noise(b=2, sizes=(64,))
    visible = (1 - pixels_of(task, batch)).bool()
    before, rebuild = task(batch, CLOCK).loss, task.rebuild
    task.rebuild = lambda y: torch.where(visible, 9.0, rebuild(y))
    assert torch.equal(task(batch, CLOCK).loss, before)


def test_mask_token_stands_in_front_of_positions():
    """Two hidden patches differ by their positions alone."""
    task, batch = build("simmim"), batch_for("simmim", b=1)
    rows = []
    task.encoder.blocks.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    task(batch, CLOCK)
    cells = task.choose(batch.key).flatten(1)[0]
    tokens = rows[0][0, 1:][cells] - task.encoder.table[cells]
    torch.testing.assert_close(tokens, task.mask_token.expand_as(tokens))


@pytest.mark.parametrize("name", ["swin", "convnext_atto", "resnet10_w16"])
def test_features_of_staged_networks_are_stem_and_encode(name):
    if name == "swin":
        net = swin(32).eval()
    else:
        net = backbones.create(BackboneConfig(name=name, image_size=32)).eval()
    x = torch.randn(1, 3, 32, 32)
    theirs = net.net.forward_features(x)
    theirs = theirs.permute(0, 3, 1, 2) if name == "swin" else theirs
    theirs = net.net.head.norm(theirs) if name == "convnext_atto" else theirs
    torch.testing.assert_close(net.encode(net.stem(x)), theirs)
    torch.testing.assert_close(net.features(x), theirs)
    assert net.patch == (0 if name == "resnet10_w16" else 4)


def test_tables_of_distances_decay_and_tokens_and_positions_do_not():
    """The official pretraining's exception for the tables never matches their names."""
    found = {}
    for task in (staged(), build("simmim")):
        cfg = replace(RECIPES["paper"].optim, lr=1.0)
        optimizer = optim.build(task, cfg)
        optim.set_rates(optimizer, 1.0, 1.0, cfg.weight_decay)
        decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        found |= {n: decays[id(p)] for n, p in task.named_parameters()}
    assert found["mask_token"] == found["encoder.cls_token"] == found["pixels.bias"] == 0
    assert found["encoder.net.layers.0.blocks.0.attn.relative_position_bias_table"] == 0.05
    assert found["pixels.weight"] == found["encoder.net.patch_embed.proj.weight"] == 0.05
    assert found["encoder.net.patch_embed.norm.weight"] == 0


def test_drawn_are_the_seen_the_guess_and_both():
    task, batch = staged().eval(), noise(b=2, sizes=(64,))
    x, hidden = batch.images[0], pixels_of(task, batch).bool()
    drawn = task.draw(batch)
    guess = task.rebuild(task.encode(x, task.choose(batch.key)))
    for name, where, what in (("seen", ~hidden, x), ("predicted", hidden, guess)):
        assert torch.equal(drawn[name].isnan(), ~where.expand_as(x))
        assert torch.equal(drawn[name][where.expand_as(x)], what[where.expand_as(x)])
    assert torch.equal(drawn["both"], torch.where(hidden, guess, x))


def test_start_of_the_mask_token():
    task = SimMIM(SimMIM.Config(views=(View(size=32),)), PatchNet())
    assert 0 < task.mask_token.abs().max() < 0.1
    assert math.isclose(task.hidden, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio: 0.0 hides 0 of 16 cells"),
        ({"mask_ratio": 1.5}, "mask_ratio: 1.5 hides 24 of 16 cells"),
        ({"mask_size": 12}, "mask_size: 12 pixels must be a multiple of the patch, 8"),
        ({"mask_size": 64}, r"divide method.views.0.size=32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build("simmim", **settings)


def test_networks_that_look_over_the_edges_of_patches_are_refused():
    cfg = SimMIM.Config(views=(View(size=32),))
    resnet = backbones.create(BackboneConfig(name="resnet10_w16", image_size=32))
    for encoder in (ConvNet(), resnet):
        with pytest.raises(ValueError, match="setting backbone: SimMIM hides patches"):
            SimMIM(cfg, encoder)


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match="SimMIM sees 1 view of a picture, not 2"):
        SimMIM(SimMIM.Config(views=(View(count=2, size=32),)), PatchNet())


def test_the_mask_follows_the_picture_not_its_place_in_the_batch():
    task, batch = build("simmim"), batch_for("simmim")
    assert torch.equal(task.choose(batch.key)[4:], task.choose(batch.key[4:]))
    assert not torch.equal(task.choose(batch.key)[0], task.choose(batch.key)[1])
    assert views(batch.images[0]).key.equal(batch.key)
