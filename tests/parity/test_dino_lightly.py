"""DINO's loss, center, temperature and head against lightly's."""

import pytest
import torch
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from toys import batch_for, build

from saccade.core import Clock
from saccade.nn.functional import encode
from saccade.nn.parts import PrototypeHead


def test_loss_and_center_equal_lightlys_over_the_warm_up_of_the_temperature():
    settings = {"teacher_temperature": 0.07, "warmup_teacher_temperature_epochs": 3}
    task = build("dino", **settings).train()
    loss = DINOLoss(12, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=3)
    logits = {}
    task.head.register_forward_hook(lambda _, inputs, out: logits.update(student=out))
    task.teacher_head.register_forward_hook(lambda _, inputs, out: logits.update(teacher=out))
    for epoch in range(5):
        step = task(batch_for("dino", epoch), Clock(epoch, 10, 1))
        teacher, student = logits["teacher"].chunk(2), logits["student"].chunk(4)
        theirs = loss(list(teacher), list(student), epoch=epoch)
        torch.testing.assert_close(step.loss, theirs, atol=1e-5, rtol=1e-5)
        task.recenter()
        torch.testing.assert_close(task.center, loss.center.flatten())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("batch_norm", [False, True])
def test_head_equals_lightlys(batch_norm):
    torch.manual_seed(0)
    ours = PrototypeHead(16, 32, 8, 20, train_gain=False, batch_norm=batch_norm)
    theirs = DINOProjectionHead(16, 32, 8, 20, batch_norm=batch_norm, norm_last_layer=True)
    state = ours.mlp.state_dict()  # ours keeps the official biases in front of a norm: zero here
    theirs.layers.load_state_dict({k: state[k] for k in theirs.layers.state_dict()})
    theirs.last_layer.weight_v.data.copy_(ours.prototypes.data)
    x = torch.randn(10, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_multi_crop_equals_crops_one_by_one():
    task = build("dino").eval()
    crops = batch_for("dino").images
    alone = torch.cat([task.encoder(x) for x in crops])
    torch.testing.assert_close(encode(task.encoder, crops), alone)
