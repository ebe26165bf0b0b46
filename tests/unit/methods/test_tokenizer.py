import math

import pytest
import torch
import torch.nn.functional as F
from toys import CLOCK, PatchNet, batch_for, build, train, views

from saccade.core import Clock, View
from saccade.methods.tokenizer import Tokenizer, gumbel
from saccade.nn import random


def settled(**settings):
    """A toy whose codes no longer stand at zero use."""
    task = build("tokenizer", **settings)
    task.usage.fill_(5)
    return task.eval()


@torch.no_grad()
def test_kmeans_loss_is_the_equation_written_as_loops():
    task, batch = settled(), batch_for("tokenizer", b=2)
    y = task.encoder.features(batch.images[0])
    z = F.normalize(task.coder.front(y.permute(0, 2, 3, 1)), dim=-1)
    near, painted = 0.0, torch.zeros(2, 4, 4, 4)
    for b in range(2):
        for i in range(4):
            for j in range(4):
                cosines = [float(z[b, i, j] @ e) for e in task.coder.codebook]
                best = cosines.index(max(cosines))
                painted[b, i, j] = task.coder.codebook[best]
                near += float((z[b, i, j] - painted[b, i, j]).square().sum())
    picture = task.coder.decoder(painted.permute(0, 3, 1, 2))
    assert picture.shape == (2, 3, 32, 32)
    want = (picture - batch.images[0]).square().mean().item() + 0.25 * near / 32
    step = task(batch, CLOCK)
    assert step.loss.item() == pytest.approx(want, rel=1e-5)
    assert step.logs["extra"].item() == pytest.approx(near / 32, rel=1e-5)


def test_gradient_skips_the_choice_of_a_code():
    """The error reaches a patch's vector as if it were its code's; the codebook gets none."""
    task, batch = settled(beta=0.0), batch_for("tokenizer")
    held = []
    vectors = task.coder.vectors
    task.coder.vectors = lambda y: held.append(vectors(y)) or held[0]
    step = task(batch, CLOCK)
    (mine,) = torch.autograd.grad(step.loss, held)
    e = task.coder.codebook[task.coder.nearest(held[0])].requires_grad_()
    error = (task.coder.paint(e) - batch.images[0]).square().mean()
    torch.testing.assert_close(mine, torch.autograd.grad(error, e)[0])
    assert not task.coder.codebook.requires_grad


def test_one_step_of_kmeans_written_as_loops():
    task = settled(decay=0.9)
    z = F.normalize(torch.randn(2, 4, 4, 4), dim=-1)
    book = task.coder.codebook.clone()
    chosen = [[] for _ in book]
    for row in z.flatten(0, 2):
        cosines = [float(row @ e) for e in book]
        chosen[cosines.index(max(cosines))].append(row)
    task.follow(z, torch.arange(2))
    for k, rows in enumerate(chosen):
        want = book[k]
        if rows:
            near = sum(rows)
            want = 0.9 * book[k] + 0.1 * near / near.norm()
            want = want / want.norm()
        torch.testing.assert_close(task.coder.codebook[k], want)
        assert task.usage[k].item() == pytest.approx(0.9 * 5 + 0.1 * len(rows))


def test_rare_codes_start_anew_at_patches_of_the_batch():
    task = settled()
    task.usage[3], task.usage[7] = 0.0, 0.01
    z = F.normalize(torch.randn(4, 4, 4, 4), dim=-1)
    before = task.coder.codebook.clone()
    task.cfg = type(task.cfg)(codes=12, code_dim=4, decay=1.0)  # so that nothing moves
    task.follow(z, torch.arange(4))
    rows = z.flatten(0, 2)
    moved = [k for k in range(12) if not torch.allclose(before[k], task.coder.codebook[k])]
    assert moved == [3, 7]
    for k in moved:
        assert any(torch.allclose(task.coder.codebook[k], row) for row in rows)
        assert task.usage[k] == pytest.approx(64 / 12)
    assert not torch.equal(task.coder.codebook[3], task.coder.codebook[7])


def test_the_first_step_starts_all_codes_at_patches():
    task = build("tokenizer").train()
    before = task.coder.codebook.clone()
    task(batch_for("tokenizer"), CLOCK)
    assert not torch.isclose(before, task.coder.codebook).all(1).any()
    torch.testing.assert_close(task.coder.codebook.norm(dim=-1), torch.ones(12))


@torch.no_grad()
def test_gumbel_loss_is_the_equation_written_as_loops():
    task, batch = settled(quantizer="gumbel", beta=0.5), batch_for("tokenizer", b=2)
    clock = Clock(5, 10, 5)
    t = 1 / 16 + (1 - 1 / 16) * (1 + math.cos(math.pi / 2)) / 2
    logits = task.coder.front(task.encoder.features(batch.images[0]).permute(0, 2, 3, 1))
    g, kl, e = gumbel(batch.key, logits), 0.0, torch.zeros(2, 4, 4, 4)
    for at in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4)).tolist():
        row, noise = logits[tuple(at)], g[tuple(at)]
        p = row.softmax(0)
        kl += sum(float(q) * (math.log(float(q)) + math.log(12)) for q in p)
        for k, q in enumerate(((row + noise) / t).softmax(0)):
            e[tuple(at)] += q * task.coder.codebook[k]
    picture = task.coder.decoder(e.permute(0, 3, 1, 2))
    want = (picture - batch.images[0]).square().mean().item() + 0.5 * kl / 32
    assert task(batch, clock).loss.item() == pytest.approx(want, rel=1e-4)


def test_gradient_reaches_the_codes_of_a_discrete_vae():
    task = build("tokenizer", quantizer="gumbel")
    task(batch_for("tokenizer"), CLOCK).loss.backward()
    assert task.coder.codebook.grad.abs().sum() > 0
    assert task.coder.front.weight.grad.abs().sum() > 0


def test_noise_is_gumbels_and_the_pictures_own():
    like = torch.empty(2000, 2, 2, 8)
    g = gumbel(random.keys(0, 0, torch.arange(2000)), like)
    assert g.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert g.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    assert torch.equal(g[3:5], gumbel(random.keys(0, 0, torch.arange(3, 5)), like[:2]))


def test_one_color_everywhere_is_one_code_and_noise_is_many():
    task = settled()
    plain = task(views(torch.ones(8, 3, 32, 32)), CLOCK).logs["codes_used"]
    assert 1 <= plain < 12  # positions alone tell patches apart
    task = build("tokenizer").train()
    train(task, [batch_for("tokenizer", i) for i in range(3)])
    assert task(batch_for("tokenizer", 9), CLOCK).logs["codes_used"] > 4


@torch.no_grad()
def test_the_picture_drawn_is_what_the_codes_give():
    task, batch = settled(), batch_for("tokenizer")
    error = (task.draw(batch)["rebuilt"] - batch.images[0]).square().mean()
    explained = 1 - error / batch.images[0].var(correction=0)
    assert explained.item() == pytest.approx(task(batch, CLOCK).logs["explained"].item(), rel=1e-5)


def test_training_explains_pictures():
    task = build("tokenizer", codes=64)
    before = task.eval()(batch_for("tokenizer", 0), CLOCK).logs["explained"]
    train(task, [batch_for("tokenizer", i % 4) for i in range(30)], lr=0.1, total=30)
    assert task.eval()(batch_for("tokenizer", 0), CLOCK).logs["explained"] > before + 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": (View(count=2, size=32),)}, "sees 1 view, not 2"),
        ({"codes": 4}, "method.codes: 4 codes need vectors of fewer dimensions"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(Tokenizer.Config(**{"views": (View(size=32),), **settings}), PatchNet())
