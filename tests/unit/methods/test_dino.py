import copy
import math

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from toys import CLOCK, ConvNet, batch_for, build, noise, train, views

from saccade.core import Clock, View
from saccade.methods.dino import DINO, cross_views, encode, teacher_temperature
from saccade.nn.parts import PrototypeHead


def probabilities(*shape):
    return torch.randn(*shape).softmax(-1), torch.randn(4, *shape[1:]).log_softmax(-1)


@pytest.mark.parametrize(("crops", "terms"), [(2, 2), (10, 18), (12, 22)])
def test_loss_equals_the_double_sum_written_as_loops(crops, terms):
    torch.manual_seed(0)
    p, log_s = torch.randn(2, 3, 5).softmax(-1), torch.randn(crops, 3, 5).log_softmax(-1)
    total, count = 0.0, 0
    for q in range(2):
        for v in range(crops):
            if v != q:
                count += 1
                total += sum(-float(p[q, b] @ log_s[v, b]) for b in range(3)) / 3
    assert count == terms
    assert cross_views(p, log_s).item() == pytest.approx(total / count, rel=1e-5)


def test_order_of_local_crops_does_not_matter():
    torch.manual_seed(0)
    p, log_s = probabilities(2, 3, 5)
    torch.testing.assert_close(cross_views(p, log_s), cross_views(p, log_s[[0, 1, 3, 2]]))


def test_loss_of_a_fresh_network_nears_the_log_of_the_number_of_prototypes_once_centered():
    torch.manual_seed(0)
    task = DINO(DINO.Config(hidden=16, bottleneck=256, prototypes=512), ConvNet())
    losses = []
    for _ in range(30):
        losses.append(task(noise(), CLOCK).loss.item())
        task.recenter()
    assert losses[-1] == pytest.approx(math.log(512), rel=0.05)


def test_center_after_the_first_step_is_a_tenth_of_the_mean_of_raw_teacher_logits():
    task = build("dino")
    logits = []
    task.teacher_head.register_forward_hook(lambda _, inputs, out: logits.append(out))
    task(batch_for("dino"), CLOCK)
    assert len(logits) == 1
    assert logits[0].shape == (16, 12)  # both global crops of 8 pictures
    assert not task.center.any()
    task.recenter()
    torch.testing.assert_close(task.center, 0.1 * logits[0].mean(0))


def test_center_is_subtracted_before_it_moves():
    task, batch = build("dino"), batch_for("dino")
    other = copy.deepcopy(task)
    shift = torch.randn(12)
    other.center += shift
    other.teacher_head.register_forward_hook(lambda _, inputs, out: out + shift)
    torch.testing.assert_close(task(batch, CLOCK).loss, other(batch, CLOCK).loss)
    task.recenter()
    other.recenter()
    torch.testing.assert_close(task.center + shift, other.center)


def test_a_constant_added_to_all_teacher_logits_changes_nothing_but_the_center():
    task, batch = build("dino"), batch_for("dino")
    other = copy.deepcopy(task)
    other.teacher_head.register_forward_hook(lambda _, inputs, out: out + 3)
    torch.testing.assert_close(task(batch, CLOCK).loss, other(batch, CLOCK).loss)
    task.recenter()
    other.recenter()
    torch.testing.assert_close(task.center + 0.3, other.center)


@pytest.mark.parametrize("name", ["dino", "ibot", "mst"])
def test_centers_are_means_in_float32_under_autocast(name):
    task, logits = build(name), []
    task.teacher_head.register_forward_hook(lambda _, inputs, out: logits.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        task(batch_for(name), CLOCK)
    task.recenter()
    assert logits[0].dtype == torch.bfloat16
    rounded = 0.1 * logits[0].mean(0)
    torch.testing.assert_close(task.center, 0.1 * logits[0].float().mean(0))
    assert not torch.equal(task.center, rounded.float())


def test_without_sharpening_everything_is_uniform_and_the_loss_is_the_log_of_the_prototypes():
    flat = {"teacher_temperature": 1e5, "student_temperature": 1e5}
    step = build("dino", **flat)(batch_for("dino"), CLOCK)
    assert step.loss.item() == pytest.approx(math.log(12), rel=1e-5)
    assert step.logs["teacher_entropy"].item() == pytest.approx(math.log(12), rel=1e-5)
    assert step.logs["teacher_gap"].item() == pytest.approx(0, abs=1e-5)


def test_entropy_and_gap_add_up_to_the_loss_and_vanish_for_a_sharp_teacher():
    task = build("dino")
    step = task(batch_for("dino"), CLOCK)
    assert step.logs["teacher_entropy"] <= math.log(12)
    assert step.logs["teacher_gap"] > 0
    torch.testing.assert_close(
        step.loss.detach(), step.logs["teacher_entropy"] + step.logs["teacher_gap"]
    )
    sharp = build("dino", teacher_temperature=1e-5)(batch_for("dino"), CLOCK)
    assert sharp.logs["teacher_entropy"] < 0.01


def test_local_crops_do_not_reach_the_teacher():
    a, b = batch_for("dino", 0), batch_for("dino", 1)
    mixed = views(*a.images[:2], *b.images[2:])
    first, second = build("dino"), build("dino")
    assert first(a, CLOCK).loss != second(mixed, CLOCK).loss
    first.recenter()
    second.recenter()
    assert torch.equal(first.center, second.center)
    assert first.center.any()


def test_crops_of_one_size_share_a_pass_and_the_head_runs_once():
    task, sizes, heads = build("dino"), [], []
    task.encoder.register_forward_hook(lambda _, inputs, out: sizes.append(inputs[0].shape))
    task.head.register_forward_hook(lambda _, inputs, out: heads.append(out.shape))
    task(batch_for("dino"), CLOCK)
    assert sizes == [(16, 3, 32, 32), (16, 3, 16, 16)]
    assert heads == [(32, 12)]


def test_encode_keeps_the_order_of_crops():
    crops = [torch.full((2, 3, s, s), float(i)) for i, s in enumerate((4, 4, 2, 4))]
    out = encode(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), crops)
    assert out[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_frozen_gain_keeps_logits_within_one():
    torch.manual_seed(0)
    head = PrototypeHead(16, 32, 8, 20, train_gain=False)
    logits = head(100 * torch.randn(50, 16))
    assert logits.abs().max() <= 1 + 1e-6
    assert not head.gain.requires_grad
    assert PrototypeHead(16, 32, 8, 20, train_gain=True).gain.requires_grad


def test_last_layer_equals_torchs_weight_norm():
    torch.manual_seed(0)
    head, z = PrototypeHead(16, 32, 8, 20, train_gain=True), torch.randn(5, 8)
    with torch.no_grad():
        head.gain.uniform_(0.5, 2)
    last = nn.utils.parametrizations.weight_norm(nn.Linear(8, 20, bias=False))
    last.parametrizations.weight.original0.data = head.gain.data
    last.parametrizations.weight.original1.data = head.prototypes.data
    head.mlp = nn.Identity()
    torch.testing.assert_close(head(z), last(nn.functional.normalize(z, dim=-1)))


def test_head_starts_as_the_official_one():
    torch.manual_seed(0)
    head = PrototypeHead(64, 128, 32, 20, train_gain=False)
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(m.bias.eq(0).all() for m in head.mlp if isinstance(m, nn.Linear))
    assert head.prototypes.abs().max() <= 32**-0.5
    assert head.gain.eq(1).all()


def test_last_layer_stays_to_the_bit_through_its_frozen_epoch_then_moves():
    task = build("dino", freeze_last_layer=1, norm_last_layer=False)
    start = copy.deepcopy(task.head.state_dict())
    train(task, [batch_for("dino", i) for i in range(5)])  # one epoch of 5 steps
    for name in ("prototypes", "gain"):
        assert torch.equal(task.head.state_dict()[name], start[name])
    assert not torch.equal(task.head.state_dict()["mlp.0.weight"], start["mlp.0.weight"])
    task.before_update(Clock(5, 10, 5))
    task(batch_for("dino"), Clock(5, 10, 5)).loss.backward()
    task.before_update(Clock(5, 10, 5))
    assert task.head.prototypes.grad is not None
    assert task.head.gain.grad is not None


def test_teacher_temperature_climbs_in_equal_steps_and_stays():
    cfg = DINO.Config(teacher_temperature=0.07, warmup_teacher_temperature_epochs=4)
    got = [teacher_temperature(cfg, e) for e in range(6)]
    assert got == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert teacher_temperature(DINO.Config(teacher_temperature=0.06), 0) == 0.06


def test_momentum_climbs_along_half_a_cosine():
    task = build("dino", momentum=0.5)
    with torch.no_grad():
        start = copy.deepcopy(task.encoder.body[0].weight)
        task.encoder.body[0].weight += 1
    task.after_update(Clock(5, 10, 5))  # halfway: .75
    torch.testing.assert_close(task.teacher.module.body[0].weight, start + 0.25)


def test_teacher_has_no_stochastic_depth_gets_no_gradient_and_is_kept():
    net = ConvNet()
    net.body.append(DropPath(0.5))
    task = DINO(DINO.Config(hidden=8, bottleneck=8, prototypes=8), net).train()
    assert task.encoder.body[-1].drop_prob == 0.5
    assert task.kept() is task.teacher.module
    assert task.kept().body[-1].drop_prob == 0
    task(noise(), CLOCK).loss.backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(p.grad is None for p in task.teacher_head.parameters())


def test_features_are_the_teachers_of_the_first_global_crop():
    task, batch = build("dino").train(), batch_for("dino")
    with torch.no_grad():
        for p in task.encoder.parameters():
            p.zero_()
    want = copy.deepcopy(task.teacher)(torch.cat(batch.images[:2]))[:8]
    assert torch.equal(task(batch, CLOCK).features, want)


def test_fewer_than_two_crops_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: DINO needs 2 global crops, not 1"):
        DINO(DINO.Config(views=(View(),)), ConvNet())


@pytest.mark.parametrize("name", ["dino", "dinov2", "ibot", "mst"])
def test_batch_norm_in_the_head_is_a_choice_of_all_of_the_family(name):
    with_norm, without = (build(name, batch_norm_in_head=on) for on in (True, False))
    heads = [m for m in with_norm.modules() if isinstance(m, PrototypeHead)]
    assert len(heads) == (4 if name == "dinov2" else 2)  # and the teacher's
    for head in heads:
        assert sum(isinstance(m, nn.BatchNorm1d) for m in head.mlp) == 2
    assert not any(isinstance(m, nn.BatchNorm1d) for m in without.head.mlp)
    assert with_norm.train()(batch_for(name), CLOCK).loss.isfinite()
