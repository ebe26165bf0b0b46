"""The patch loss of IBOT, and of DINO's in the methods built on it, against lightly's."""

import pytest
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss
from toys import batch_for, build

from saccade.core import Clock
from saccade.nn.functional import masked_cross_entropy


def test_patch_loss_equals_lightlys_on_the_masked_tokens():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 6, 16, 12).unbind()
    mask = torch.rand(6, 4, 4) < torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])[:, None, None]
    assert not mask[0].any()
    theirs = IBOTPatchLoss(12, teacher_temp=0.07, student_temp=0.1)
    theirs.center.center.fill_(0.0).add_(torch.randn(12))
    flat = mask.flatten(1)
    p = ((teacher - theirs.center.value) / 0.07).softmax(-1)
    ours = masked_cross_entropy(p[flat], (student[flat] / 0.1).log_softmax(-1), flat)
    torch.testing.assert_close(ours, theirs(teacher[flat], student[flat], mask))


def test_center_equals_lightlys_where_every_patch_is_masked():
    """Lightly's center follows masked tokens only, ours all of them, as in the official code."""
    task = build("ibot").train()
    task.choose = lambda key, grid: torch.ones(16, 16, dtype=torch.bool)
    logits, theirs = {}, IBOTPatchLoss(12, student_temp=0.1)
    task.head.register_forward_hook(lambda _, inputs, out: logits.update(student=out))
    task.teacher_head.register_forward_hook(lambda _, inputs, out: logits.update(teacher=out))
    for epoch in range(3):
        step = task(batch_for("ibot", epoch), Clock(epoch, 100, 1))
        t = 0.04 + 0.03 * epoch / 29
        rows = [logits[k].reshape(-1, 12) for k in ("teacher", "student")]
        loss = theirs(*rows, torch.ones(16, 4, 4, dtype=torch.bool), teacher_temp=t)
        torch.testing.assert_close(step.logs["patch_loss"], loss.detach(), atol=1e-5, rtol=1e-5)
        task.recenter()
        torch.testing.assert_close(task.patch_center, theirs.center.value.flatten())


@pytest.mark.parametrize("name", ["ibot", "mst"])
def test_loss_of_cls_tokens_and_its_center_equal_lightlys(name):
    settings = {"teacher_temperature": 0.07, "warmup_teacher_temperature_epochs": 3}
    alone = {"weights": (1.0, 0.0)} if name == "ibot" else {"restore_weight": 0.0}
    task = build(name, **settings, **alone).train()
    theirs = DINOLoss(12, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=3)
    logits = {"student": [], "teacher": []}
    task.head.register_forward_hook(lambda _, i, out: logits["student"].append(out))
    task.teacher_head.register_forward_hook(lambda _, i, out: logits["teacher"].append(out))
    for epoch in range(5):
        step = task(batch_for(name, epoch), Clock(epoch, 10, 1))
        teacher, student = (rows.pop(0) for rows in (logits["teacher"], logits["student"]))
        loss = theirs(list(teacher.chunk(2)), list(student.chunk(4)), epoch=epoch)
        torch.testing.assert_close(step.loss, loss, atol=1e-5, rtol=1e-5)
        task.recenter()
        torch.testing.assert_close(task.center, theirs.center.flatten())
        for rows in logits.values():
            rows.clear()
