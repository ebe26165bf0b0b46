import math

import pytest
import torch
from toys import CLOCK, PatchNet, batch_for, build, views

from saccade import backbones
from saccade.core import View, Views
from saccade.methods.beit import BEiT
from saccade.recipe import BackboneConfig
from saccade.tokenizers.color import Color


@torch.no_grad()
def test_loss_is_the_equation_written_as_loops():
    task, batch = build("beit"), batch_for("beit", b=3)
    mask = task.choose(batch.key)
    codes = Color().encode(batch.images[0], (4, 4)).flatten(1)
    h = task.encode(batch.images[0], mask)
    total, right, n = 0.0, 0, 0
    for b in range(3):
        for i in range(16):
            if mask[b, i]:
                scores = [
                    float(h[b, i] @ w + c) for w, c in zip(*task.head.parameters(), strict=True)
                ]
                total += math.log(sum(map(math.exp, scores))) - scores[codes[b, i]]
                right += scores.index(max(scores)) == codes[b, i]
                n += 1
    step = task(batch, CLOCK)
    assert step.loss.item() == pytest.approx(total / n, rel=1e-5)
    assert step.logs["accuracy"].item() == pytest.approx(right / n)
    assert step.logs["masked"].item() == pytest.approx(n / 48)


def test_the_encoder_sees_no_hidden_pixel():
    task, batch = build("beit").eval(), batch_for("beit")
    mask = task.choose(batch.key)
    pixels = mask.unflatten(1, (4, 4)).float()
    pixels = pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    image = batch.images[0]
    seen = task.encode(image, mask)
    assert torch.equal(seen, task.encode(image + 100 * pixels, mask))
    assert not torch.equal(seen, task.encode(image + (1 - pixels), mask))


def test_loss_reads_no_prediction_at_visible_patches():
    task, batch = build("beit"), batch_for("beit")
    held = []
    encode = task.encode
    task.encode = lambda x, mask: held.append(encode(x, mask)) or held[0]
    (gradient,) = torch.autograd.grad(task(batch, CLOCK).loss, held)
    mask = task.choose(batch.key)
    assert (gradient.abs().sum(-1) > 0).equal(mask)


def test_patches_masked_are_at_most_the_number_and_follow_the_picture():
    task, batch = build("beit"), batch_for("beit", b=64)
    mask = task.choose(batch.key)
    assert mask.sum(1).max() <= 6
    assert mask.sum(1).float().mean() > 5
    assert torch.equal(mask[5:9], task.choose(batch.key[5:9]))


def test_a_batch_without_masked_patches_costs_nothing():
    task = build("beit")
    task.choose = lambda key: torch.zeros(len(key), 16, dtype=torch.bool)
    assert task(batch_for("beit"), CLOCK).loss.item() == 0


def test_the_first_loss_is_nearly_that_of_guessing():
    task = build("beit")
    assert task(batch_for("beit"), CLOCK).loss.item() == pytest.approx(math.log(512), abs=0.1)
    torch.nn.init.zeros_(task.head.weight)
    assert task(batch_for("beit"), CLOCK).loss.item() == pytest.approx(math.log(512), rel=1e-6)


def test_the_tokenizer_sees_pixels_before_they_were_normalized():
    task, x = build("beit"), torch.rand(4, 3, 32, 32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    plain = views(x)
    normal = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    batch = Views(images=[normal], index=plain.index, key=plain.key, mean=mean, std=std)
    torch.testing.assert_close(batch.pixels(), x)
    seen = []
    task.tokenizer.encode = lambda p, grid: seen.append(p) or Color().encode(p, grid)
    task(batch, CLOCK)
    torch.testing.assert_close(seen[0], x)


@torch.no_grad()
def test_pictures_show_the_guesses_at_hidden_patches_only():
    task, batch = build("beit").eval(), views(torch.rand(4, 3, 32, 32))
    shown, mask = task.draw(batch), task.choose(batch.key)
    assert list(shown) == ["seen", "codes", "predicted"]
    hidden = mask.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(shown["seen"].isnan().all(1), hidden)
    guess = task.head(task.encode(batch.images[0], mask)).argmax(-1)
    codes = Color().encode(batch.images[0], (4, 4)).flatten(1)
    assert torch.equal(Color().encode(shown["codes"], (4, 4)).flatten(1), codes)
    found = Color().encode(shown["predicted"], (4, 4)).flatten(1)
    assert torch.equal(found, torch.where(mask, guess, codes))


def test_start_is_the_official_one():
    cfg = BackboneConfig(name="beit_pico_shared_patch4_32", image_size=32)
    torch.manual_seed(0)
    encoder = backbones.create(cfg)
    task = BEiT(BEiT.Config(tokenizer="color", masked=30, views=(View(size=32),)), encoder)
    for k, block in enumerate(encoder.net.blocks):
        shrunk = math.sqrt(2 * (k + 1))
        assert 0.019 < block.attn.qkv.weight.abs().max() <= 0.02
        assert 0.019 < shrunk * block.attn.proj.weight.abs().max() <= 0.02 + 1e-6
        assert 0.019 < shrunk * block.mlp.fc2.weight.abs().max() <= 0.02 + 1e-6
        assert block.gamma_1.eq(0.1).all()
    assert encoder.net.rel_pos_bias.relative_position_bias_table.eq(0).all()
    assert 0 < task.mask_token.abs().max() <= 0.02
    (rest, cls) = task.groups()
    assert [n for n, _ in cls.params] == ["encoder.net.cls_token"]
    assert cls.decay_scale == 0
    assert any(n.endswith("relative_position_bias_table") for n, _ in rest.params)
    assert task.mask_token.ndim == 3  # or weight decay would skip it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": (View(count=2, size=32),)}, "BEiT sees 1 view of a picture, not 2"),
        ({"views": (View(size=48),)}, r"views\.0\.size: 48 pixels.*image_size=32"),
        ({"masked": 16}, "method.masked: 16 of 16 patches"),
        ({"min_block": 7}, "method.min_block: 7 patches, but method.masked=6"),
        ({"tokenizer": ""}, "method.tokenizer is missing; give color"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    small = {"tokenizer": "color", "masked": 6, "min_block": 2, "views": (View(size=32),)}
    cfg = small | settings
    with pytest.raises(ValueError, match=message):
        BEiT(BEiT.Config(**cfg), PatchNet())
