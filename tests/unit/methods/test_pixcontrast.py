import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, views

from saccade.core import Clock, StrongSet, View
from saccade.methods.pixcontrast import PixContrast, contrast
from saccade.nn.parts import Ema
from saccade.nn.pixels import bin_distances

EACH = (View(size=32), View(size=32))


def pixcontrast(**settings):
    """Maps are the pictures themselves: cells of three numbers."""
    task = PixContrast(PixContrast.Config(hidden=4, dim=3, views=EACH, **settings), Pixels(3))
    task.projector = nn.Identity()
    task.teacher_projector = Ema(nn.Identity())
    return task


def test_equals_the_equation_written_as_loops():
    torch.manual_seed(0)
    batch = views(*torch.randn(2, 3, 3, 3, 3))
    batch.boxes[0][0] = torch.tensor([0.0, 0.0, 0.5, 0.6])
    near = bin_distances(tuple(batch.boxes), tuple(batch.flips), (3, 3)) <= 0.7
    assert not near.any(-1).all()  # some cells lie outside the other crop
    total = 0.0
    for i in range(3):
        for view, other in ((0, 1), (1, 0)):
            x = [batch.images[view][i, :, r, c] for r in range(3) for c in range(3)]
            z = [batch.images[other][i, :, r, c] for r in range(3) for c in range(3)]
            losses = []
            for k in range(9):
                s = [math.exp(float(F.cosine_similarity(x[k], v, 0)) / 0.3) for v in z]
                mine = [j for j in range(9) if (near[i, k, j] if view == 0 else near[i, j, k])]
                if mine:
                    losses.append(-math.log(sum(s[j] for j in mine) / sum(s)))
            total += sum(losses) / max(len(losses), 1)
    assert pixcontrast()(batch, CLOCK).loss.item() == pytest.approx(total / 6, rel=1e-4)


def test_equal_cells_with_one_positive_each_give_log_of_the_number_of_cells():
    x = torch.ones(2, 9, 3) / 3**0.5
    near = torch.eye(9, dtype=torch.bool).expand(2, 9, 9)
    assert contrast(x, x, near, 0.3).item() == pytest.approx(math.log(9), rel=1e-5)
    assert contrast(x, x, torch.ones_like(near), 0.3).item() == pytest.approx(0, abs=1e-6)


def test_crops_that_do_not_meet_cost_nothing_and_have_no_gradient():
    x = torch.randn(2, 9, 3, requires_grad=True)
    loss = contrast(x, torch.randn(2, 9, 3), torch.zeros(2, 9, 9, dtype=torch.bool), 0.3)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


def test_the_loss_is_float32_under_autocast():
    torch.manual_seed(0)
    x, z = F.normalize(torch.randn(2, 2, 9, 3), dim=-1).unbind()
    near = torch.rand(2, 9, 9) < 0.3
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrast(x, z, near, 0.3)
    assert torch.equal(loss, contrast(x, z, near, 0.3))


def test_negatives_come_from_the_same_image_only():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 3, 3, 3)
    batch = views(a, b)

    def some(rows):
        lists = {k: [x[rows] for x in getattr(batch, k)] for k in ("images", "boxes", "flips")}
        return pixcontrast()(dataclasses.replace(batch, **lists), CLOCK).loss

    alone = torch.stack([some(slice(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(some(slice(0, 3)), alone.mean())


def test_the_threshold_itself_is_near_enough():
    boxes = [torch.tensor([[0.0, 0.0, 0.375, 0.5]]), torch.tensor([[0.1875, 0.25, 0.5625, 0.75]])]
    x = torch.randn(2, 3, 1, 1)
    boxes = [box.expand(2, 4) for box in boxes]
    batch = dataclasses.replace(views(x, x), boxes=boxes, flips=[torch.tensor([False] * 2)] * 2)
    assert pixcontrast(threshold=0.5)(batch, CLOCK).logs["pairs"] == 1
    assert pixcontrast(threshold=0.49)(batch, CLOCK).logs["pairs"] == 0


def test_swapping_the_views_changes_nothing():
    task, batch = build("pixcontrast").train(), batch_for("pixcontrast")
    swapped = {k: getattr(batch, k)[::-1] for k in ("images", "boxes", "flips")}
    other = copy.deepcopy(task)(dataclasses.replace(batch, **swapped), CLOCK)
    torch.testing.assert_close(task(batch, CLOCK).loss, other.loss)


def test_no_gradient_reaches_the_averaged_network_and_its_momentum_climbs():
    task = build("pixcontrast", momentum=0.99).train()
    task(batch_for("pixcontrast"), CLOCK).loss.backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(p.grad is None for p in task.teacher_projector.parameters())
    with torch.no_grad():
        task.encoder.body[0].weight.fill_(1.0)
        task.teacher.module.body[0].weight.fill_(0.0)
    task.after_update(Clock(4, 10, 5))
    torch.testing.assert_close(
        task.teacher.module.body[0].weight, torch.full((8, 3, 3, 3), 1 - 0.995)
    )


def test_views_whose_cells_cannot_be_located_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: PixContrast compares 2 views of one"):
        PixContrast(PixContrast.Config(views=(View(),)), ConvNet())
    strong = View(count=2, strong=StrongSet(name="clsa"))
    with pytest.raises(ValueError, match=r"strong operations move what a cell shows"):
        PixContrast(PixContrast.Config(views=(strong,)), ConvNet())
