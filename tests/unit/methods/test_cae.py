import math

import pytest
import torch
from timm.models.beit import Block
from toys import CLOCK, PatchNet, batch_for, build, views

from saccade import backbones
from saccade.core import View
from saccade.methods.cae import CAE, RegressorBlock, ramp, rows_first
from saccade.nn.functional import take
from saccade.nn.positions import sincos_2d
from saccade.recipe import BackboneConfig
from saccade.tokenizers.color import Color


def gradients(task, batch):
    task.zero_grad()
    task(batch, CLOCK).loss.backward()
    return {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


@torch.no_grad()
def test_regressor_block_is_the_equation_written_as_loops():
    torch.manual_seed(0)
    block = RegressorBlock(8, 2, 0.1, 0.0)
    for p in block.parameters():
        p.add_(0.3 * torch.randn_like(p))
    query, seen = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    at = (torch.randn(1, 3, 8), torch.randn(1, 4, 8))

    def normed(x, norm):
        x = (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt() * norm.weight
        return x if norm.bias is None else x + norm.bias

    both, places = [*seen[0], *query[0]], [*at[1][0], *at[0][0]]
    keys = [block.k.weight @ normed(x + p, block.norm_k) for x, p in zip(both, places, strict=True)]
    values = [block.v.weight @ normed(x, block.norm_v) + block.v.bias for x in both]
    for i in range(3):
        q = block.q.weight @ normed(query[0, i] + at[0][0, i], block.norm_q) + block.q.bias
        a = torch.zeros(8)
        for head in (slice(0, 4), slice(4, 8)):
            weights = torch.tensor([float(q[head] @ k[head]) / 2 for k in keys]).softmax(0)
            a[head] = sum(w * v[head] for w, v in zip(weights, values, strict=True))
        a = block.proj.weight @ a + block.proj.bias
        y = normed(query[0, i] + block.scale_1 * a, block.norm_2)
        want = y + block.scale_2 * block.mlp(y)
        torch.testing.assert_close(block(query, seen, at)[0, i], want, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_plain_block_is_beits_whose_keys_have_no_bias():
    block = build("cae").decoder[0]
    for p in block.parameters():
        p.add_(0.3 * torch.randn_like(p))
    theirs = Block(8, 2, qkv_bias=True, init_values=0.1)
    state = {k: v for k, v in block.state_dict().items() if k != "attn.qkv.bias"}
    state["attn.q_bias"], _, state["attn.v_bias"] = block.attn.qkv.bias.chunk(3)
    state["gamma_1"], state["gamma_2"] = state.pop("ls1.gamma"), state.pop("ls2.gamma")
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), theirs(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_loss_is_both_terms_written_as_loops():
    task, batch = build("cae", alignment=3.0), batch_for("cae", b=2)
    codes = Color().encode(batch.images[0], (4, 4)).flatten(1)
    order = task.order_of(batch.key)
    tokens = task.encoder.tokens(batch.images[0])
    latent, _ = task.predict(tokens, order)
    cross, apart = 0.0, 0.0
    for b in range(2):
        masked = order[b, 10:].tolist()
        assert masked == task.choose(batch.key)[b].nonzero()[:, 0].tolist()
        alone = task.encoder.encode(tokens[b : b + 1, masked])[0, 1:]  # with a CLS of their own
        for j in range(6):
            apart += float((latent[b, j] - task.embed(alone[j])).square().mean())
        placed = (latent[b] + torch.stack([task.positions[i] for i in masked]))[None]
        for j, place in enumerate(masked):
            scores = task.decoder(placed)[0, j].tolist()
            cross += math.log(sum(map(math.exp, scores))) - scores[codes[b, place]]
    step = task(batch, CLOCK)
    assert step.logs["alignment"].item() == pytest.approx(apart / 12, rel=1e-5)
    assert step.logs["code_loss"].item() == pytest.approx(cross / 12, rel=1e-5)
    assert step.loss.item() == pytest.approx((cross + 3 * apart) / 12, rel=1e-5)


def test_without_alignment_the_encoders_own_features_are_not_taken():
    task, batch, calls = build("cae", alignment=0.0), batch_for("cae"), []
    task.encoder.blocks.register_forward_hook(lambda m, i, o: calls.append(o))
    step = task(batch, CLOCK)
    assert len(calls) == 1
    assert torch.equal(step.loss.detach(), step.logs["code_loss"])
    assert "alignment" not in step.logs
    task = build("cae", alignment=2.0)
    step = task(batch, CLOCK)
    total = step.logs["code_loss"] + 2 * step.logs["alignment"]
    assert step.loss.item() == pytest.approx(total.item(), rel=1e-6)


def test_no_gradient_comes_through_the_target():
    """Only the second of the encoder's passes, without gradient, sees the masked patches."""
    task, batch = build("cae"), batch_for("cae")
    passes = []
    task.encoder.blocks.register_forward_hook(lambda m, i, o: passes.append(o.requires_grad))
    task(batch, CLOCK)
    assert passes == [True, False]
    image = batch.images[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task(views(image), CLOCK).loss, image)
    hidden = task.choose(batch.key).unflatten(1, (4, 4))
    seen = gradient.unflatten(3, (4, 8)).unflatten(2, (4, 8)).abs().sum((1, 3, 5)) > 0
    assert torch.equal(seen, ~hidden)


def test_alignment_alone_gives_the_decoder_no_gradient_and_encoder_and_regressor_some():
    task, batch = build("cae"), batch_for("cae")
    one, three = (gradients(build("cae", alignment=a), batch) for a in (1.0, 3.0))
    for name, value in one.items():
        same = torch.allclose(value, three[name], atol=1e-7, rtol=1e-5)
        assert same == name.startswith("decoder."), name
    assert {n for n, _ in task.named_parameters()} - set(one) == {"encoder.table"}


def test_the_encoder_sees_no_hidden_pixel_and_the_target_no_visible_one():
    task, batch = build("cae").eval(), batch_for("cae")
    order, image = task.order_of(batch.key), batch.images[0]
    pixels = task.choose(batch.key).unflatten(1, (4, 4)).float()
    pixels = pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    a, seen = task.predict(task.encoder.tokens(image), order)
    b, other = task.predict(task.encoder.tokens(image + 100 * pixels), order)
    assert torch.equal(a, b)
    assert torch.equal(seen, other)
    masked = order[:, 10:]
    own = task.encoder.encode(take(task.encoder.tokens(image), masked))
    moved = take(task.encoder.tokens(image + 100 * (1 - pixels)), masked)
    assert torch.equal(own, task.encoder.encode(moved))


def test_with_half_the_patches_hidden_the_two_passes_swap_roles():
    task, batch = build("cae", masked=8).eval(), batch_for("cae")
    order = task.order_of(batch.key)
    swapped = torch.cat([order[:, 8:], order[:, :8]], 1)
    tokens = task.encoder.tokens(batch.images[0])
    _, seen = task.predict(tokens, swapped)
    own = task.encoder.encode(take(tokens, order[:, 8:]))[:, 1:]
    torch.testing.assert_close(seen, own)


@torch.no_grad()
def test_predictions_follow_their_places_and_do_not_depend_on_the_order_of_visible_patches():
    task, batch = build("cae").eval(), batch_for("cae")
    order, tokens = task.order_of(batch.key), task.encoder.tokens(batch.images[0])
    latent, _ = task.predict(tokens, order)
    turn = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = torch.cat([order[:, :10], order[:, 10:][:, turn]], 1)
    torch.testing.assert_close(
        task.predict(tokens, turned)[0], latent[:, turn], atol=1e-5, rtol=1e-4
    )
    scores = task.decode(latent, order[:, 10:])
    again = task.decode(latent[:, turn], turned[:, 10:])
    torch.testing.assert_close(again, scores[:, turn], atol=1e-5, rtol=1e-4)
    mixed = torch.cat([order[:, :10].flip(1), order[:, 10:]], 1)
    torch.testing.assert_close(task.predict(tokens, mixed)[0], latent, atol=1e-5, rtol=1e-4)


def test_a_mask_token_never_enters_the_encoder():
    task, batch = build("cae"), batch_for("cae")
    features = task(batch, CLOCK).features
    torch.nn.init.constant_(task.regressor.mask_token, 9.0)
    assert torch.equal(features, task(batch, CLOCK).features)


@pytest.mark.parametrize("shape", ["block", "random"])
def test_every_picture_has_the_same_number_of_hidden_patches(shape):
    task, batch = build("cae", mask_shape=shape), batch_for("cae", b=64)
    mask = task.choose(batch.key)
    assert mask.sum(1).eq(6).all()
    assert torch.equal(task.order_of(batch.key).sort(1).values, torch.arange(16).expand(64, -1))
    assert len(mask.unique(dim=0)) > 20


def test_equal_scores_cost_the_log_of_the_number_of_codes_and_equal_features_nothing():
    task, batch = build("cae"), batch_for("cae")
    assert task(batch, CLOCK).logs["code_loss"].item() == pytest.approx(math.log(512), abs=0.2)
    torch.nn.init.zeros_(task.decoder[-1].weight)
    step = task(batch, CLOCK)
    assert step.logs["code_loss"].item() == pytest.approx(math.log(512), rel=1e-6)
    assert step.logs["target_std"] > 0
    for norm in (task.embed[1], task.regressor.norm):  # a constant prediction of a constant
        torch.nn.init.zeros_(norm.weight)
    step = task(batch, CLOCK)
    assert step.logs["alignment"] == 0
    assert step.logs["target_std"] == 0


def test_positions_hold_sines_of_the_row_first():
    table = rows_first((3, 5), 8)
    for i in range(15):
        row, column = divmod(i, 5)
        want = [
            f(at * w) for at in (row, column) for f in (math.sin, math.cos) for w in (1.0, 0.01)
        ]
        assert table[i].tolist() == pytest.approx(want, abs=1e-6)
    square, other = rows_first((4, 4), 8), sincos_2d((4, 4), 8)
    assert torch.equal(square.unflatten(0, (4, 4)).transpose(0, 1).flatten(0, 1), other)


def test_start_is_the_official_one():
    torch.manual_seed(0)
    encoder = backbones.create(BackboneConfig(name="vit_pico_patch4_32", image_size=32))
    cfg = CAE.Config(
        tokenizer="color", masked=32, decoder_dim=96, decoder_heads=3, views=(View(size=32),)
    )
    task = CAE(cfg, encoder)
    assert isinstance(task.embed, torch.nn.Identity)
    for linear in (encoder.net.blocks[5].mlp.fc1, task.regressor.blocks[0].mlp.fc1):
        bound = (6 / (96 + 384)) ** 0.5
        assert bound * 0.97 < linear.weight.abs().max() <= bound
        assert linear.bias.eq(0).all()
    for p in (
        encoder.net.patch_embed.proj.weight,
        encoder.net.cls_token,
        task.regressor.mask_token,
    ):
        assert 0.015 < p.abs().max() <= 0.02
    assert torch.equal(encoder.net.pos_embed[0, 1:], rows_first((8, 8), 96))
    assert encoder.net.pos_embed[0, 0].eq(0).all()
    assert not encoder.net.pos_embed.requires_grad
    rates = [b.drop.drop_prob for b in task.regressor.blocks]
    assert rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
    assert task.decoder[0].ls1.gamma.eq(0.1).all()
    assert task.regressor.mask_token.ndim == 3  # or weight decay would skip it
    assert ramp(0.1, 1) == [0.0]


@torch.no_grad()
def test_pictures_show_the_guesses_at_hidden_patches_only():
    task, batch = build("cae").eval(), views(torch.rand(4, 3, 32, 32))
    shown, mask = task.draw(batch), task.choose(batch.key)
    order = task.order_of(batch.key)
    latent, _ = task.predict(task.encoder.tokens(batch.images[0]), order)
    guess = task.decode(latent, order[:, 10:]).argmax(-1)
    codes = Color().encode(batch.images[0], (4, 4)).flatten(1)
    want = codes.masked_scatter(mask, guess)
    assert torch.equal(Color().encode(shown["predicted"], (4, 4)).flatten(1), want)
    assert shown["seen"].isnan().any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": (View(count=2, size=32),)}, "CAE sees 1 view of a picture, not 2"),
        ({"views": (View(size=48),)}, r"views\.0\.size: 48 pixels.*image_size=32"),
        ({"masked": 0}, "method.masked: 0 of 16 patches"),
        ({"min_block": 0}, "method.min_block: 0 patches, but method.masked=6"),
        ({"decoder_heads": 3}, "method.decoder_heads: 3 heads do not share 8 channels"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    sizes = {"decoder_dim": 8, "decoder_heads": 2, "masked": 6, "min_block": 2}
    sizes["views"] = (View(size=32),)
    with pytest.raises(ValueError, match=message):
        CAE(CAE.Config(tokenizer="color", **(sizes | settings)), PatchNet())
