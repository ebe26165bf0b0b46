import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import CLOCK, ConvNet, batch_for, build, colored

from saccade import backbones
from saccade.core import Clock, View
from saccade.methods.igpt import IGPT, check, complete, pick
from saccade.nn.palette import kmeans
from saccade.nn.random import keys, uniform
from saccade.recipe import BackboneConfig


def method(causal=True, **settings):
    torch.manual_seed(0)
    return IGPT(IGPT.Config(views=(View(size=8),), **settings), colored(causal))


@pytest.mark.parametrize("name", ["igpt_pico_16", "igpt_pico_16_bert"])
def test_the_first_loss_is_log_512_and_only_the_scores_learn_from_it(name):
    encoder = backbones.create(BackboneConfig(name=name, image_size=8))
    task = IGPT(IGPT.Config(views=(View(size=8),)), encoder)
    step = task(batch_for("igpt"), CLOCK)
    assert step.loss.item() == pytest.approx(math.log(512), abs=1e-6)
    assert step.logs["bits"].item() == pytest.approx(3, abs=1e-6)  # 9 bits a pixel
    step.loss.backward()
    moved = {n for n, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"encoder.output.weight"}


@torch.no_grad()
def test_the_autoregressive_loss_is_that_of_loops():
    task, batch = method(), batch_for("igpt", b=2)
    loss = task(batch, CLOCK).loss.item()
    encoder, total = task.encoder, 0.0
    tokens = encoder.tokens(batch.images[0])
    scores = encoder.scores(encoder.encode(tokens)).double().exp()
    for b in range(2):
        for n, t in enumerate(tokens[b].flatten()):
            total -= math.log(float(scores[b, n, t] / scores[b, n].sum()))
    assert loss == pytest.approx(total / 128, rel=1e-5)


@torch.no_grad()
def test_the_bert_loss_asks_for_the_hidden_pixels_alone_written_as_loops():
    task, batch = method(False), batch_for("igpt", b=3)
    loss = task(batch, CLOCK).loss.item()
    encoder, totals = task.encoder, []
    tokens = encoder.tokens(batch.images[0])
    draws = uniform(batch.key, 64, "hidden")
    for b in range(3):
        hidden = [n for n in range(64) if draws[b, n] < 0.15]
        mask = torch.zeros(1, 64, dtype=torch.bool)
        mask[0, hidden] = True
        h = encoder.encode(tokens[b : b + 1], mask.view(1, 8, 8))
        scores = encoder.scores(h)[0].double().exp()
        at = tokens[b].flatten()
        totals.append([-math.log(float(scores[n, at[n]] / scores[n].sum())) for n in hidden])
    assert loss == pytest.approx(sum(sum(t) / len(t) for t in totals) / 3, rel=1e-5)


def test_hidden_pixels_are_a_share_that_depends_on_the_key_alone():
    task = method(False)
    tokens = torch.zeros(500, 8, 8, dtype=torch.long)
    key = keys(0, 0, torch.arange(500))
    hidden = task.hidden(key, tokens)
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(task.hidden(key[7:9], tokens[:2]), hidden[7:9])
    assert method(False, mask_ratio=1.0).hidden(key, tokens).all()


def test_the_palette_is_that_of_the_first_batch_and_stays():
    task, batch = method(), batch_for("igpt")
    assert not task.encoder.fitted
    task(batch, CLOCK)
    pixels = (2 * unit(batch.images[0]) - 1).flatten(2).mT.flatten(0, 1)
    assert torch.equal(task.encoder.palette, kmeans(pixels, 8))
    before = task.encoder.palette.clone()
    task(batch_for("igpt", 1), CLOCK)
    assert torch.equal(task.encoder.palette, before)


def unit(x):
    from saccade.recipe import IMAGENET_MEAN, IMAGENET_STD

    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return x * std + mean


def test_later_steps_take_the_palette_as_it_is():
    task = method()
    before = task.encoder.palette.clone()
    task(batch_for("igpt"), Clock(1, 10, 5))
    assert torch.equal(task.encoder.palette, before)


def test_released_colors_replace_those_of_the_pictures(tmp_path):
    colors = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
    np.save(tmp_path / "colors.npy", colors)
    task = method(clusters=str(tmp_path / "colors.npy"))
    task(batch_for("igpt"), CLOCK)
    assert np.array_equal(task.encoder.palette.numpy(), colors)


def naive(encoder, tokens, given, key, temperature, top_k):
    """The whole picture through the network for every pixel."""
    flat = tokens.flatten(1).clone()
    draws = uniform(key, flat.shape[1], "color")
    for i in range(given, flat.shape[1]):
        scores = encoder.scores(encoder.encode(flat.view_as(tokens)))[:, i]
        flat[:, i] = pick(scores, draws[:, i], temperature, top_k)
    return flat.view_as(tokens)


@pytest.mark.parametrize(
    ("given", "temperature", "top_k"), [(0, 1.0, 0), (32, 0.7, 0), (17, 1.0, 3)]
)
@torch.no_grad()
def test_drawing_with_memory_gives_the_colors_of_drawing_without(given, temperature, top_k):
    encoder = method().encoder
    tokens = torch.randint(8, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    key = keys(0, 0, torch.arange(3))
    found = complete(encoder, tokens, given, key, temperature, top_k)
    assert torch.equal(found, naive(encoder, tokens, given, key, temperature, top_k))
    assert torch.equal(found.flatten(1)[:, :given], tokens.flatten(1)[:, :given])
    assert not torch.equal(found, tokens)


def test_colors_are_drawn_by_their_shares():
    scores = torch.tensor([0.2, 0.5, 0.3]).log().repeat(1000, 1)
    draw = (torch.arange(1000) + 0.5) / 1000
    assert torch.bincount(pick(scores, draw, 1.0, 0)).tolist() == [200, 500, 300]
    cooler = torch.bincount(pick(scores, draw, 0.5, 0)).tolist()
    assert cooler == pytest.approx([1000 * p**2 / 0.38 for p in (0.2, 0.5, 0.3)], abs=1)
    assert torch.bincount(pick(scores, draw, 1.0, 2), minlength=3).tolist() == [0, 625, 375]
    assert pick(scores[:2], torch.tensor([0.0, 1 - 2**-24]), 1.0, 1).tolist() == [1, 1]


def test_colors_without_a_share_are_never_drawn():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert pick(scores, torch.tensor([0.0, 1 - 2**-24]), 1.0, 0).tolist() == [1, 1]


def test_pictures_show_what_was_given_and_what_became_of_it():
    task, batch = build("igpt").eval(), batch_for("igpt", b=2)
    drawn = task.draw(batch)
    seen, given, made = drawn["palette"], drawn["given"], drawn["completed"]
    assert torch.equal(given[:, :, :4], seen[:, :, :4])
    assert given[:, :, 4:].isnan().all()
    assert torch.equal(made[:, :, :4], seen[:, :, :4])
    assert not torch.equal(made, seen)
    task = method(False).eval()
    drawn = task.draw(batch)
    hidden = drawn["given"].isnan()
    assert 0.05 < hidden.float().mean() < 0.3
    assert torch.equal(drawn["completed"][~hidden], drawn["palette"][~hidden])


def test_settings_that_do_not_fit_are_refused():
    two = (View(size=8), View(size=8))
    for said, make in {
        "transformer over colors": lambda: check(IGPT.Config(), ConvNet()),
        "1 view": lambda: IGPT(replace(method().cfg, views=two), colored()),
        "views.0.size: 16": lambda: IGPT(IGPT.Config(views=(View(size=16),)), colored()),
        "mask_ratio: 0.0; choose": lambda: method(False, mask_ratio=0.0),
        "mask_ratio: 0.3 is not read": lambda: method(mask_ratio=0.3),
    }.items():
        with pytest.raises(ValueError, match=said):
            make()
