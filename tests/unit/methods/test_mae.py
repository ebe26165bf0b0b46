import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, PatchNet, batch_for, build, views

from saccade import backbones, weights
from saccade.core import View
from saccade.methods.mae import MAE
from saccade.nn.functional import take
from saccade.nn.masking import random_order
from saccade.nn.patches import patchify
from saccade.nn.positions import sincos_2d
from saccade.recipe import BackboneConfig


def test_predicting_zero_of_normalized_patches_costs_the_share_of_unbiased_variance():
    task = build("mae", norm_pix_loss=True)
    nn.init.zeros_(task.decoder.pixels.weight)
    n = 3 * 8 * 8
    step = task(batch_for("mae"), CLOCK)
    assert step.loss.item() == pytest.approx((n - 1) / n, rel=1e-4)
    assert step.logs["explained"].item() == pytest.approx(0, abs=1e-4)


def test_loss_is_the_mean_over_hidden_patches_written_as_loops():
    task, batch = build("mae"), batch_for("mae", b=2)
    order = random_order(batch.key, 16)
    seen = task.encoder.encode(take(task.encoder.tokens(batch.images[0]), order[:, :4]))
    guess, target = task.decoder(seen, order), patchify(batch.images[0], 8)
    total = 0.0
    for i in range(2):
        for j, patch in enumerate(order[i, 4:]):
            total += float((guess[i, j] - target[i, patch]).square().mean().detach())
    assert guess.shape == (2, 12, 192)
    assert task(batch, CLOCK).loss.item() == pytest.approx(total / 24, rel=1e-5)


def test_encoder_sees_no_hidden_pixel():
    task, batch = build("mae"), batch_for("mae")
    order = random_order(batch.key, 16)
    hidden = torch.zeros(8, 16).scatter_(1, order[:, 4:], 1.0)  # 1 = hidden, raster order
    assert hidden.sum(1).eq(12).all()
    pixels = hidden.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    other = views(batch.images[0] + 100 * pixels)
    assert torch.equal(task(batch, CLOCK).features, task(other, CLOCK).features)
    visible = views(batch.images[0] + (1 - pixels))
    assert not torch.equal(task(batch, CLOCK).features, task(visible, CLOCK).features)


def test_decoder_puts_every_patch_back_in_its_place():
    task, order = build("mae"), random_order(torch.arange(2), 16)
    x = torch.randn(2, 5, 16)
    rows = []
    task.decoder.blocks.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    task.decoder(x, order)
    tokens, embedded = rows[0][:, 1:] - sincos_2d((4, 4), 8), task.decoder.embed(x)
    torch.testing.assert_close(rows[0][:, 0], embedded[:, 0])
    for i in range(2):
        for place in range(16):
            rank = order[i].tolist().index(place)
            want = embedded[i, 1 + rank] if rank < 4 else task.decoder.mask_token[0, 0]
            torch.testing.assert_close(tokens[i, place], want)


def test_encoder_on_the_full_picture_does_not_depend_on_the_order_of_patches():
    task, x = build("mae").eval(), batch_for("mae").images[0]
    tokens, order = task.encoder.tokens(x), random_order(torch.arange(8), 16)
    whole, shuffled = task.encoder.encode(tokens), task.encoder.encode(take(tokens, order))
    torch.testing.assert_close(shuffled[:, 1:], take(whole[:, 1:], order), atol=1e-5, rtol=1e-4)


def test_start_is_the_official_one():
    task = build("mae", decoder_dim=64)
    assert torch.equal(task.encoder.table, sincos_2d((4, 4), 16))
    assert not task.encoder.table.requires_grad
    embed = task.encoder.embed.weight
    bound = (6 / (16 + 3 * 64)) ** 0.5
    assert bound * 0.97 < embed.abs().max() <= bound
    assert task.encoder.embed.bias.abs().max() > 0  # keeps the convolution's own start
    linear = task.decoder.blocks[0].mlp.fc1
    bound = (6 / (64 + 256)) ** 0.5
    assert bound * 0.97 < linear.weight.abs().max() <= bound
    assert linear.bias.eq(0).all()
    assert task.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert task.decoder.mask_token.ndim == 3  # or weight decay would skip it


def test_position_tables_get_no_gradient_and_everything_else_does():
    task = build("mae")
    task(batch_for("mae"), CLOCK).loss.backward()
    without = {n for n, p in task.named_parameters() if p.grad is None}
    assert without == {"encoder.table"}
    assert "decoder.positions" in dict(task.named_buffers())


@pytest.mark.parametrize("size", [16, 48])
def test_positions_for_another_size_are_resized_by_cubics_and_the_row_of_cls_stays(size, tmp_path):
    net = backbones.create(BackboneConfig(name="vit_pico_patch4_32", image_size=32)).net
    table = nn.init.normal_(net.pos_embed)
    decoder = {"decoder_pred.bias": torch.zeros(48), "mask_token": torch.zeros(1, 1, 8)}
    torch.save({"model": net.state_dict() | decoder}, tmp_path / "x.pth")
    found = weights.load(tmp_path / "x.pth", backbone="vit_pico_patch4_32", image_size=size)
    assert (found.layout, found.report.resized) == ("MAE", ("pos_embed",))
    assert found.report.unexpected == tuple(decoder)
    grid = (size // 4, size // 4)
    want = F.interpolate(table[:, 1:].mT.unflatten(2, (8, 8)), grid, mode="bicubic", antialias=True)
    torch.testing.assert_close(found.backbone.net.pos_embed[:, 1:], want.flatten(2).mT)
    assert torch.equal(found.backbone.net.pos_embed[:, 0], table[:, 0])


def test_the_mask_follows_the_picture_not_its_place_in_the_batch():
    task, batch = build("mae").eval(), batch_for("mae")
    half = copy.copy(batch)
    half = type(batch)(images=[batch.images[0][4:]], index=batch.index[4:], key=batch.key[4:])
    torch.testing.assert_close(task(batch, CLOCK).features[4:], task(half, CLOCK).features)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_drawn_are_what_is_seen_and_what_is_guessed_where_nothing_is(norm_pix_loss):
    task, batch = build("mae", norm_pix_loss=norm_pix_loss).eval(), batch_for("mae", b=2)
    image, order = batch.images[0], random_order(batch.key, 16)
    drawn = task.draw(batch)
    _, guess = task.rebuild(image, order)
    for i in range(2):
        for rank, place in enumerate(order[i].tolist()):
            at = (i, slice(None), *(slice(8 * k, 8 * k + 8) for k in divmod(place, 4)))
            if rank < 4:
                assert torch.equal(drawn["seen"][at], image[at])
                assert torch.equal(drawn["both"][at], image[at])
                assert drawn["predicted"][at].isnan().all()
                continue
            want = guess[i, rank - 4].unflatten(0, (8, 8, 3)).permute(2, 0, 1)
            if norm_pix_loss:
                want = want * image[at].var().add(1e-6).sqrt() + image[at].mean()
            torch.testing.assert_close(drawn["predicted"][at], want, atol=1e-5, rtol=1e-4)
            assert torch.equal(drawn["both"][at], drawn["predicted"][at])
            assert drawn["seen"][at].isnan().all()


@pytest.mark.parametrize("ratio", [0.0, 0.99])
def test_a_ratio_that_hides_or_keeps_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match=r"method\.mask_ratio"):
        build("mae", mask_ratio=ratio)


def test_views_of_another_size_than_the_positions_are_refused():
    with pytest.raises(ValueError, match=r"views\.0\.size: 48 pixels.*image_size=32"):
        MAE(MAE.Config(views=(View(size=48),), decoder_dim=8), PatchNet())


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match="MAE sees 1 view of a picture, not 2"):
        MAE(MAE.Config(views=(View(count=2, size=32),)), PatchNet())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_dim": 30}, r"method\.decoder_dim: 30 channels.*such as 28"),
        ({"decoder_dim": 24, "decoder_heads": 9}, r"method\.decoder_heads: 9 heads.*such as 8"),
    ],
)
def test_decoders_whose_heads_or_positions_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build("mae", **settings)
