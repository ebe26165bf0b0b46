import copy
import math

import pytest
import torch
import torch.nn.functional as F
from toys import CLOCK, PatchNet, batch_for, build, noise, train

from saccade.backbones import create
from saccade.core import Clock, View
from saccade.methods.dinov2 import DINOv2, koleo, teacher_temperature
from saccade.nn import random
from saccade.nn.functional import sinkhorn
from saccade.recipe import BackboneConfig


def test_koleo_of_known_rows():
    assert koleo(torch.eye(2)).item() == pytest.approx(-0.3466, abs=1e-4)
    assert 15 < koleo(torch.ones(3, 16)).item() < 19
    torch.manual_seed(0)
    x, total = torch.randn(6, 5), 0.0
    z = [v / v.norm() for v in x]
    for i in range(6):
        total += math.log(min(float((z[i] - z[j]).norm()) for j in range(6) if j != i)) / 6
    assert koleo(x).item() == pytest.approx(-total, rel=1e-4)


def test_koleo_pushes_neighbors_apart():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], requires_grad=True)
    koleo(x).backward()
    assert x.grad[0, 1] > 0 > x.grad[1, 1]  # a step down the gradient widens the gap


def test_known_balanced_assignment():
    got = sinkhorn(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), 0.5)
    want = [[0.587198, 0.079469, 0.333333], [0.079469, 0.587198, 0.333333]]
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-5, rtol=0)


def test_equals_the_sum_of_its_parts_written_out():
    task, batch = build("dinov2", koleo_weight=0.3), batch_for("dinov2", b=3)
    step = copy.deepcopy(task)(batch, CLOCK)
    mask = task.choose(batch.key, (4, 4))
    assert 0 < mask.any(1).sum() < 6
    net, whole = task.teacher.module, torch.cat(batch.images[:2])
    with torch.no_grad():
        y = net.encode(net.tokens(whole))
        q = sinkhorn(task.teacher_head.module(y[:, 0]), 0.04)
        where = mask.nonzero().tolist()
        q_i = sinkhorn(
            task.teacher_patch_head.module(torch.stack([y[c, 1 + i] for c, i in where])), 0.04
        )
        tokens = task.encoder.tokens(whole)
        for c, i in where:
            tokens[c, i] = task.mask_token + task.encoder.positions(32, 32)[0, i]
        y = task.encoder.encode(tokens)
        local = task.encoder(torch.cat(batch.images[2:]))
        s = (task.head(torch.cat([y[:, 0], local])) / 0.1).log_softmax(-1)
        match = 0.0
        for i in range(3):
            for teacher in range(2):
                for crop in range(4):
                    if crop != teacher:
                        match -= float(q[3 * teacher + i] @ s[3 * crop + i]) / 3 / 6
        inside = 0.0
        for (c, i), target in zip(where, q_i, strict=True):
            s_i = (task.patch_head(y[c, 1 + i]) / 0.1).log_softmax(-1)
            inside -= float(target @ s_i) / int(mask[c].sum()) / 6
        apart = float(koleo(y[:3, 0]) + koleo(y[3:, 0]))
    assert step.logs["patch_loss"].item() == pytest.approx(inside, rel=1e-4)
    assert step.loss.item() == pytest.approx(match + inside + 0.3 * apart, rel=1e-4)


def test_half_of_a_batch_is_masked_with_shares_that_fill_the_range():
    keys = random.keys(0, 0, torch.arange(50))
    mask = build("dinov2").choose(keys, (14, 14))
    share = mask.float().mean(1)
    hidden = share[share > 0].sort().values
    assert len(hidden) == 50
    for i, value in enumerate(hidden.tolist()):  # strata of width .4 / 50; rectangles fall short
        assert value <= 0.1 + 0.4 * (i + 2) / 50
    assert hidden[-1] > 0.45


def test_the_temperature_of_the_teacher_rises_with_every_step_of_its_warm_up():
    cfg = DINOv2.Config(teacher_temperature=0.07, warmup_teacher_temperature_epochs=3)
    got = [teacher_temperature(cfg, Clock(s, 100, 10)) for s in (0, 10, 15, 30, 99)]
    assert got == pytest.approx([0.04, 0.05, 0.055, 0.07, 0.07])
    still = DINOv2.Config(teacher_temperature=0.05, warmup_teacher_temperature_epochs=0)
    assert teacher_temperature(still, Clock(0, 100, 10)) == pytest.approx(0.05)


def test_the_patch_embedding_learns_at_a_fifth_of_the_rate():
    task = build("dinov2")
    fast, slow = task.groups()
    assert {n for n, _ in slow.params} == {"encoder.embed.weight", "encoder.embed.bias"}
    assert (fast.lr_scale, slow.lr_scale) == (1.0, 0.2)


def test_teachers_get_no_gradient_follow_their_own_head_and_one_is_kept():
    task = build("dinov2").train()
    task(batch_for("dinov2"), CLOCK).loss.backward()
    for frozen in (task.teacher, task.teacher_head, task.teacher_patch_head):
        assert all(p.grad is None for p in frozen.parameters())
    before = copy.deepcopy(task.teacher_patch_head.module.prototypes)
    with torch.no_grad():
        task.patch_head.prototypes += 1
    task.after_update(CLOCK)
    torch.testing.assert_close(task.teacher_patch_head.module.prototypes, before + 0.1)
    assert task.kept() is task.teacher.module


def test_prototypes_stay_through_their_frozen_epoch():
    task = build("dinov2", freeze_last_layer=1)
    start = copy.deepcopy(task.state_dict())
    train(task, [batch_for("dinov2", i) for i in range(2)])
    for name in ("head.prototypes", "patch_head.prototypes"):
        assert torch.equal(task.state_dict()[name], start[name])


def test_a_constant_added_to_all_teacher_logits_changes_nothing():
    task, batch = build("dinov2"), batch_for("dinov2")
    other = copy.deepcopy(task)
    other.teacher_head.register_forward_hook(lambda _, inputs, out: out + 3)
    torch.testing.assert_close(task(batch, CLOCK).loss, other(batch, CLOCK).loss)


def test_fewer_than_two_crops_and_networks_without_cls_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: DINOv2 needs 2 global crops, not 1"):
        DINOv2(DINOv2.Config(views=(View(),)), PatchNet())
    net = PatchNet()
    net.prefix = 0
    with pytest.raises(ValueError, match="needs a CLS token"):
        DINOv2(DINOv2.Config(), net)


def test_directions_alone_matter_to_koleo():
    x = torch.randn(5, 4)
    torch.testing.assert_close(koleo(x), koleo(F.normalize(x, dim=-1) * torch.rand(5, 1).add(0.1)))


@pytest.mark.slow
def test_registers_are_neither_masked_nor_compared():
    torch.manual_seed(0)
    encoder = create(BackboneConfig(name="vit_small_patch14_reg4_dinov2", image_size=28))
    task = DINOv2(DINOv2.Config(hidden=8, bottleneck=8, patch_bottleneck=8, prototypes=8), encoder)
    task.choose = lambda key, grid: torch.ones(4, 4, dtype=torch.bool)
    seen = []
    task.patch_head.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    step = task.eval()(noise(b=2, sizes=(28, 28)), CLOCK)
    whole = torch.cat(noise(b=2, sizes=(28, 28)).images)
    tokens = (task.mask_token + encoder.positions(28, 28)).expand(len(whole), -1, -1)
    assert encoder.prefix == 5
    torch.testing.assert_close(seen[0], encoder.encode(tokens)[:, 5:].flatten(0, 1))
    torch.testing.assert_close(step.features, task.teacher(whole[:2]))
