import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, train, views

from saccade.core import View
from saccade.methods.memory_bank import RECIPES, MemoryBank
from saccade.nn.random import integers


def memory_bank(images=9, negatives=0, temperature=0.2, dim=12, **settings):
    torch.manual_seed(0)
    cfg = MemoryBank.Config(
        images=images, dim=dim, negatives=negatives, temperature=temperature, **settings
    )
    task = MemoryBank(cfg, Pixels(dim))
    task.projector = nn.Identity()
    return task


def unit(x):
    return F.normalize(x.flatten(1), dim=1)


def test_softmax_over_all_images_equals_torchs_cross_entropy():
    task, x = memory_bank(), torch.randn(4, 3, 2, 2)
    wanted = nn.CrossEntropyLoss()(unit(x) @ task.bank.rows.T / 0.2, torch.arange(4))
    torch.testing.assert_close(task(views(x), CLOCK).loss, wanted)


def test_the_estimate_equals_the_equation_written_as_loops():
    task, x = memory_bank(negatives=7), torch.randn(4, 3, 2, 2)
    batch = views(x)
    drawn = integers(batch.key, 7, 9, "negatives").tolist()
    v, rows = unit(x), task.bank.rows
    e = [[math.exp(float(v[i] @ rows[j]) / 0.2) for j in (i, *drawn[i])] for i in range(4)]
    z = 9 * sum(map(sum, e)) / (4 * 8)
    total = 0.0
    for line in e:
        own, *others = [p / z / (p / z + 7 / 9) for p in line]
        total -= (math.log(own) + sum(math.log(1 - h) for h in others)) / 4
    assert task(batch, CLOCK).loss.item() == pytest.approx(total, rel=1e-5)
    assert task.log_z.exp().item() == pytest.approx(z, rel=1e-5)


def test_the_estimate_starts_at_the_published_loss():
    task = memory_bank(images=5000, negatives=4096, temperature=1000.0)  # all draws are alike
    loss = task(views(torch.randn(2, 3, 2, 2)), CLOCK).loss.item()
    assert loss == pytest.approx(math.log(4097) + 4096 * math.log(1 + 1 / 4096), abs=0.005)
    assert loss == pytest.approx(9.318, abs=0.005)


def test_the_softmax_starts_at_the_log_of_the_images():
    for temperature, excess in ((0.2, 0.1), (0.07, 0.8)):
        task = memory_bank(images=5000, temperature=temperature, dim=128)
        loss = task(views(torch.randn(64, 128, 1, 1)), CLOCK).loss.item()
        assert loss == pytest.approx(math.log(5000) + excess, abs=0.25)


def test_the_constant_is_taken_from_the_first_batch_and_kept():
    task = build("memory_bank")
    train(task, [batch_for("memory_bank", 0)])
    first = task.log_z.clone()
    assert first.isfinite()
    train(task, [batch_for("memory_bank", i) for i in (1, 2)])
    assert torch.equal(task.log_z, first)
    assert torch.equal(task.state_dict()["log_z"], first)


def gradient(task, x, key):
    x = x.clone().requires_grad_()
    batch = views(x)
    step = task(type(batch)(images=batch.images, index=batch.index, key=key), CLOCK)
    (g,) = torch.autograd.grad(step.loss, x)
    return g.flatten()


def test_with_the_exact_constant_the_gradient_tends_to_that_of_the_softmax():
    x = torch.randn(8, 12, 1, 1)
    rows = F.normalize(torch.randn(50, 12), dim=1)
    full, v, errors = memory_bank(images=50), unit(x), []
    full.bank.rows.copy_(rows)
    wanted = gradient(full, x, views(x).key)
    for m in (50, 500, 5000):
        sampled, found = memory_bank(images=50, negatives=m), []
        sampled.bank.rows.copy_(rows)
        for i in range(8):  # the exact constant differs from image to image
            sampled.log_z.copy_((v[i] @ rows.T / 0.2).exp().sum().log())
            found.append(gradient(sampled, x, views(x).key).unflatten(0, (8, 12))[i])
        found = torch.stack(found).flatten()
        errors.append(((found - wanted).norm() / wanted.norm()).item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[-1]
    assert F.cosine_similarity(found, wanted, dim=0) > 0.99
    assert (found.norm() / wanted.norm()).item() == pytest.approx(1, abs=0.1)


def test_negatives_are_summed_and_not_averaged():
    x = torch.randn(4, 12, 1, 1)
    few, many = (memory_bank(images=500, negatives=m) for m in (10, 1000))
    for task in (few, many):
        task.log_z.copy_(torch.tensor(math.log(500.0)))
    # every draw adds about P N / m to the loss for m/N >> P, so the sum does not depend on m
    a, b = (task(views(x), CLOCK).loss.item() for task in (few, many))
    assert b - a == pytest.approx(math.log(1000 / 10), rel=0.1)  # all of it from the positive


def test_images_and_rows_permuted_together_change_nothing():
    task, x = memory_bank(images=4), torch.randn(4, 3, 2, 2)
    order = torch.tensor([2, 0, 3, 1])
    other = copy.deepcopy(task)
    other.bank.rows.copy_(task.bank.rows[order])
    loss = task(views(x), CLOCK).loss
    torch.testing.assert_close(other(views(x[order]), CLOCK).loss, loss)
    assert (other(views(x), CLOCK).loss - loss).abs() > 0.05


def test_doubling_the_temperature_halves_the_logits():
    x = torch.randn(4, 3, 2, 2)
    one, two = memory_bank(temperature=0.1), memory_bank(temperature=0.2)
    one.bank.rows.mul_(0.5)
    torch.testing.assert_close(one(views(x), CLOCK).loss, two(views(x), CLOCK).loss)


def test_the_proximal_term_is_the_squared_distance_to_the_row():
    x = torch.randn(4, 3, 2, 2)
    plain, near = memory_bank(negatives=5), memory_bank(negatives=5, proximal=30.0)
    added = near(views(x), CLOCK).loss - plain(views(x), CLOCK).loss
    gaps = unit(x) - plain.bank.rows[:4]
    wanted = 30 * sum(float(gap @ gap) for gap in gaps) / 4
    assert added.item() == pytest.approx(wanted, rel=1e-4)


def test_rows_take_the_features_from_before_the_update_of_the_weights():
    task = build("memory_bank", momentum=0.0)
    with torch.no_grad():
        v = F.normalize(copy.deepcopy(task).projector(task.train().encoder(noise().images[0])))
    task = build("memory_bank", momentum=0.0)
    before = task.bank.rows.clone()
    train(task, [noise()], lr=5.0)
    torch.testing.assert_close(task.bank.rows[:8], v)
    assert torch.equal(task.bank.rows[8:], before[8:])


@pytest.mark.parametrize("negatives", [0, 7])
def test_autocast_rounds_neither_the_logits_nor_the_bank(negatives):
    x = torch.randn(4, 3, 2, 2)
    plain, task = memory_bank(negatives=negatives), memory_bank(negatives=negatives)
    with torch.autocast("cpu", torch.bfloat16):
        step = task(views(x), CLOCK)
        task.after_update(CLOCK)
    assert torch.equal(step.loss, plain(views(x), CLOCK).loss)
    plain.after_update(CLOCK)
    assert task.bank.rows.dtype == torch.float32
    assert torch.equal(task.bank.rows, plain.bank.rows)


def test_the_small_recipe_has_no_flip_and_the_papers_drops():
    small = RECIPES["small"]
    assert small.method.views[0].flip == 0
    assert [share * small.epochs for share in small.optim.schedule.drops] == [80, 120, 160]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: MemoryBank sees 1 view of a picture"):
        MemoryBank(MemoryBank.Config(images=4, views=(View(count=2),)), ConvNet())
    with pytest.raises(ValueError, match=r"method\.images: 0; give the number"):
        MemoryBank(MemoryBank.Config(), ConvNet())
