import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, views

from saccade.core import StrongSet, View
from saccade.data import augment
from saccade.methods.infomin import RECIPES, InfoMin, cut
from saccade.nn import random
from saccade.nn.parts import Ema
from saccade.recipe import Normalize

JIGSAW = (View(count=2, size=2), View(size=6))


def infomin(jigsaw=0.5, **settings):
    """Embeddings are the pictures themselves; a patch is one pixel of each 2 x 2 cell."""
    torch.manual_seed(0)
    rows = JIGSAW if jigsaw else JIGSAW[:1]
    cfg = InfoMin.Config(
        hidden=4, dim=12, queue_size=8, patch_size=2, jigsaw=jigsaw, views=rows, **settings
    )
    task = InfoMin(cfg, Pixels(12))
    task.projector = nn.Identity()
    task.key_projector = Ema(nn.Identity())
    return task


def pictures(b=4):
    torch.manual_seed(1)
    return torch.randn(b, 3, 2, 2), torch.randn(b, 3, 2, 2), torch.randn(b, 3, 6, 6)


def by_loops(q, k, queue, temperature=0.15):
    total = 0.0
    for i in range(len(q)):
        up = math.exp(float(q[i] @ k[i]) / temperature)
        down = up + sum(math.exp(float(q[i] @ row) / temperature) for row in queue)
        total -= math.log(up / down)
    return total / len(q)


@pytest.mark.parametrize("jigsaw", [0.0, 0.3, 1.0])
def test_equals_the_equation_written_as_loops(jigsaw):
    """0 is MoCo v2's loss with t = .15; 1 is PIRL's with a momentum key."""
    a, b, c = pictures()
    task = infomin(jigsaw)
    batch = views(a, b, c) if jigsaw else views(a, b)
    q, k = (F.normalize(x.flatten(1), dim=1) for x in (a, b))
    want = (1 - jigsaw) * by_loops(q, k, task.queue.rows)
    if jigsaw:
        rows = []
        for picture in cut(c, 2, batch.key):
            z = [task.jigsaw["patch"](patch.flatten()[None])[0] for patch in picture]
            rows.append(F.normalize(task.jigsaw["whole"](torch.cat(z)), dim=0).detach())
        want += jigsaw * by_loops(rows, k, task.queue.rows)
    assert task(batch, CLOCK).loss.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("jigsaw", [0.0, 0.5, 1.0])
def test_equal_embeddings_give_the_log_of_the_queue_and_one_whatever_the_weight(jigsaw):
    task = infomin(jigsaw)
    unit = F.normalize(torch.ones(12), dim=0)
    task.queue.rows[:] = unit
    if jigsaw:
        nn.init.zeros_(task.jigsaw["whole"].weight)
        task.jigsaw["whole"].bias.data[:] = 1.0
    x = torch.ones(4, 3, 2, 2)
    step = task(views(x, x, torch.ones(4, 3, 6, 6)), CLOCK)
    assert step.loss.item() == pytest.approx(math.log(9), rel=1e-5)
    assert step.logs["information"].item() == pytest.approx(0, abs=1e-5)


def test_information_never_exceeds_the_log_of_the_queue_and_one():
    task = infomin(0.0)
    task.queue.rows[:] = F.normalize(torch.tensor([1.0, -1] * 6), dim=0)
    x = torch.ones(4, 3, 2, 2)
    found = task(views(x, x), CLOCK).logs["information"].item()
    assert 0 < found <= math.log(9)


def test_a_patch_lies_in_each_cell_and_every_picture_has_its_own_order():
    x = torch.arange(24.0 * 24).view(1, 1, 24, 24).expand(6, 3, -1, -1)
    patches = cut(x, 6, random.keys(0, 0, torch.arange(6)))  # [6, 9, 3, 6, 6]
    assert patches.shape == (6, 9, 3, 6, 6)
    corner = patches[:, :, 0, 0, 0].long()
    row, column = corner // 24, corner % 24
    grid = torch.arange(6)
    want = (row[..., None, None] + grid[:, None]) * 24 + column[..., None, None] + grid
    assert torch.equal(patches[:, :, 0].long(), want)
    assert ((row % 8 <= 2) & (column % 8 <= 2)).all()  # the patch ends within its cell
    cells = row // 8 * 3 + column // 8
    assert torch.equal(cells.sort(1).values, torch.arange(9).expand(6, 9))
    assert len(cells.unique(dim=0)) > 1


def test_the_order_of_patches_matters_to_the_whole_and_not_to_each():
    task = infomin()
    _, _, c = pictures(2)
    z = task.jigsaw["patch"](cut(c, 2, random.keys(0, 0, torch.arange(2))).flatten(2))  # [2, 9, D]
    turned = z.roll(1, 1)
    assert torch.equal(turned.sort(1).values, z.sort(1).values)
    assert not torch.allclose(
        task.jigsaw["whole"](z.flatten(1)), task.jigsaw["whole"](turned.flatten(1))
    )


def test_patches_have_gradient_and_batch_statistics_of_their_own_and_the_key_none():
    task = build("infomin").train()
    sizes = []
    task.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    batch = batch_for("infomin")
    for x in batch.images:
        x.requires_grad_()
    task(batch, CLOCK).loss.backward()
    assert sizes == [(8, 3, 32, 32), (72, 3, 6, 6)]
    assert batch.images[0].grad.abs().sum() > 0
    assert batch.images[1].grad is None
    assert (batch.images[2].grad.flatten(1).abs().sum(1) > 0).all()
    frozen = [*task.key_encoder.parameters(), *task.key_projector.parameters()]
    assert all(p.grad is None for p in frozen)


def test_each_of_the_nine_patches_of_a_picture_has_gradient():
    (a, b, c), task = pictures(), infomin()
    task.jigsaw["patch"] = nn.Identity()  # or a ReLU might close
    task(views(a, b, c.requires_grad_()), CLOCK).loss.backward()
    cells = c.grad.abs().sum(1).unflatten(1, (3, 2)).unflatten(3, (3, 2)).sum((2, 4))  # [4, 3, 3]
    assert (cells > 0).all()


def test_without_a_jigsaw_there_is_no_head_for_it():
    with_, without = (
        {k.partition(".")[0] for k, _ in infomin(j).named_parameters()} for j in (0.5, 0.0)
    )
    assert with_ - without == {"jigsaw"}


def test_published_views():
    q, plain = RECIPES["paper"].method.views
    assert q.order == ("flip", "jitter", "blur", "strong", "grayscale", "solarize")
    assert (q.strong.name, q.strong.count, q.strong.magnitude, q.strong.deviation) == (
        *("randaugment", 2),
        *(10.0, 0.5),
    )
    assert (plain.size, plain.crop, plain.jitter, plain.grayscale) == (255, (0.6, 1.0), 0, 0)
    assert RECIPES["paper"].optim.schedule.final_lr == pytest.approx(0.03 * 1e-3)


def test_randaugment_that_never_happens_changes_nothing():
    x = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    row = View(size=12, jitter=0.0, grayscale=0.0, blur=0.0)
    never = replace(row, strong=StrongSet(name="randaugment", chance=0.0))
    key = random.keys(0, 0, torch.arange(4))
    same = [augment.color(x, v, key, Normalize()) for v in (row, never)]
    assert torch.equal(*same)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"views": (View(count=2),)}, r"method\.views: InfoMin with jigsaw=0.5 sees 3"),
        ({"jigsaw": 0.0}, r"method\.views: InfoMin with jigsaw=0.0 sees 2"),
        ({"patch_size": 90}, r"method\.patch_size: 90 pixels of a cell of 85"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        InfoMin(InfoMin.Config(queue_size=8, **settings), ConvNet())
