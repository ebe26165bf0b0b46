"""RandAugment as InfoMin's code took it from timm, and the loss against lightly's."""

import pytest
import torch
from lightly.loss import NTXentLoss
from timm.data import auto_augment
from toys import CLOCK, Pixels, views

from saccade.core import View
from saccade.data import strong
from saccade.methods.infomin import RECIPES, InfoMin
from saccade.nn.parts import Ema
from saccade.nn.random import keys, uniform


def camel(name):
    """timm's name of one of our operations."""
    words = "".join(part.capitalize() for part in name.split("_"))
    own = {"Autocontrast": "AutoContrast"}
    return own.get(words, words) + ("Rel" if words.startswith("Translate") else "")


def names(table):
    inside = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]
    return [f.__name__ if f.__name__ != "<lambda>" else inside.pop(0) for f, *_ in table]


def test_the_operations_are_timms():
    assert sorted(map(camel, names(strong.RANDAUGMENT))) == sorted(auto_augment._RAND_TRANSFORMS)


@pytest.mark.parametrize("level", [0.0, 3.3, 7.5, 10.0])
def test_strengths_are_timms_at_every_level(level):
    for name, (_, low, high, signed) in zip(
        names(strong.RANDAUGMENT), strong.RANDAUGMENT, strict=True
    ):
        to_arg = auto_augment.LEVEL_TO_ARG[camel(name)]
        if to_arg is None:
            continue
        want = to_arg(level, {})[0]
        mine = low + (high - low) * level / 10
        whole = name in ("posterize", "solarize", "solarize_add")
        assert (int(mine) if whole else mine) == pytest.approx(abs(want) if signed else want), name


def test_the_published_settings_are_timms():
    mean = (124, 116, 104)
    theirs = auto_augment.rand_augment_transform("rand-m10-n2-mstd0.5", {"img_mean": mean})
    ours = RECIPES["paper"].method.views[0].strong
    assert (ours.count, len(strong.RANDAUGMENT)) == (theirs.num_layers, len(theirs.ops))
    assert mean == strong.FILL
    for op in theirs.ops:
        assert (ours.chance, ours.magnitude) == (op.prob, op.magnitude)
        assert ours.deviation == op.magnitude_std


def test_every_operation_is_drawn_alike_and_happens_half_the_time():
    kind = RECIPES["paper"].method.views[0].strong
    table = [apply for apply, *_ in strong.RANDAUGMENT]
    counts = [0] * 15
    for row in uniform(keys(0, 0, torch.arange(3000)), 10, "strong"):
        for apply, _ in strong.drawn(kind, row):
            counts[table.index(apply)] += 1
    wanted = 2 * 3000 * 0.5 / 15
    chi_square = sum((n - wanted) ** 2 / wanted for n in counts)
    chi_square += (sum(counts) - 3000) ** 2 / 3000  # those that do not happen
    assert chi_square < 37.7  # 15 degrees of freedom, p = .001


def test_each_loss_equals_lightlys():
    torch.manual_seed(0)
    cfg = InfoMin.Config(dim=12, queue_size=16, jigsaw=0.0, views=(View(count=2),))
    task = InfoMin(cfg, Pixels())
    task.projector = torch.nn.Identity()
    task.key_projector = Ema(torch.nn.Identity())
    loss = NTXentLoss(0.15, memory_bank_size=(16, 12))
    x = torch.randn(4, 12)
    loss(x, x)  # the bank comes into being; x does not enter: it has no gradient
    loss.memory_bank.bank.copy_(task.queue.rows)
    for _ in range(5):
        q, k = torch.randn(2, 4, 3, 2, 2).unbind()
        q.requires_grad_()
        torch.testing.assert_close(task(views(q, k), CLOCK).loss, loss(q.flatten(1), k.flatten(1)))
        task.enqueue()
        torch.testing.assert_close(task.queue.rows, loss.memory_bank.bank)
