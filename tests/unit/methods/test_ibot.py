import copy
import math

import pytest
import torch
from toys import CLOCK, PatchNet, batch_for, build, noise, train, views

from saccade.core import Clock, View
from saccade.methods.ibot import IBOT, RECIPES
from saccade.nn import random
from saccade.nn.functional import masked_cross_entropy

KEYS = random.keys(0, 0, torch.arange(400))


def test_patch_loss_equals_the_double_mean_written_as_loops():
    torch.manual_seed(0)
    p, log_s = torch.randn(3, 4, 5).softmax(-1), torch.randn(3, 4, 5).log_softmax(-1)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    total = 0.0
    for crop in range(3):
        inside = [i for i in range(4) if mask[crop, i]]
        total += sum(-float(p[crop, i] @ log_s[crop, i]) for i in inside) / max(len(inside), 1)
    assert masked_cross_entropy(p[mask], log_s[mask], mask).item() == pytest.approx(
        total / 3, rel=1e-5
    )


def test_loss_is_the_weighted_sum_of_its_parts():
    batch = batch_for("ibot")
    losses = {
        w: build("ibot", weights=w)(batch, CLOCK).loss for w in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0))
    }
    both = 2 * losses[1.0, 0.0] + 3 * losses[0.0, 1.0]
    torch.testing.assert_close(losses[2.0, 3.0], both)


def test_without_masks_and_patches_it_is_dino():
    from saccade import methods

    dino = methods.get("dino")
    small = {"hidden": 16, "bottleneck": 8, "prototypes": 12, "freeze_last_layer": 0}
    torch.manual_seed(0)
    one = dino(dino.Config(**small), PatchNet())
    torch.manual_seed(0)
    two = IBOT(
        IBOT.Config(
            **small,
            masked_crops=0.0,
            weights=(1.0, 0.0),
            norm_last_layer=True,
            teacher_temperature=0.04,
            warmup_teacher_temperature_epochs=0,
        ),
        PatchNet(),
    )
    batches = [batch_for("ibot", i) for i in range(3)]
    assert train(one, batches) == train(two, batches)


def test_patches_are_compared_within_the_same_crop():
    """The loss of patches alone is a mean over the two global crops, whichever comes first."""
    a, b = noise().images
    tasks = [build("ibot", weights=(0.0, 1.0), mask_shape="random").eval() for _ in range(2)]
    for task in tasks:
        task.choose = lambda key, grid: torch.ones(16, 16, dtype=torch.bool)
    losses = [t(views(*x), CLOCK).loss for t, x in zip(tasks, ((a, b), (b, a)), strict=True)]
    torch.testing.assert_close(*losses)


def test_both_centers_follow_all_tokens_of_the_teacher():
    task = build("ibot")
    logits = []
    task.teacher_head.register_forward_hook(lambda _, inputs, out: logits.append(out))
    task(batch_for("ibot"), CLOCK)
    cls, patches = logits
    assert patches.shape == (256, 12)  # masked and unmasked ones
    task.recenter()
    torch.testing.assert_close(task.center, 0.1 * cls.mean(0))
    torch.testing.assert_close(task.patch_center, 0.1 * patches.mean(0))


def test_the_teacher_sees_no_masks():
    batch = batch_for("ibot")
    tasks = [build("ibot", masked_crops=share) for share in (0.0, 1.0)]
    steps = [task(batch, CLOCK) for task in tasks]
    for task in tasks:
        task.recenter()
        assert task.patch_center.any()
    assert torch.equal(tasks[0].patch_center, tasks[1].patch_center)
    assert steps[0].logs["teacher_entropy"] == steps[1].logs["teacher_entropy"]
    assert steps[0].logs["masked"] == 0
    assert steps[0].logs["patch_loss"] == 0
    assert steps[0].loss != steps[1].loss


def test_shared_and_untied_heads():
    shared, untied = build("ibot"), build("ibot", shared_head=False)
    assert shared.patch_head is None
    assert shared.teacher_patch_head is None
    batch = batch_for("ibot")
    untied.train()(batch, CLOCK).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in untied.patch_head.parameters() if p.requires_grad)
    assert all(p.grad is None for p in untied.teacher_patch_head.parameters())
    before = copy.deepcopy(untied.teacher_patch_head.module.prototypes)
    with torch.no_grad():
        untied.patch_head.prototypes += 1
    untied.after_update(Clock(0, 10, 5))  # momentum .9: the teacher's patches follow patches
    torch.testing.assert_close(untied.teacher_patch_head.module.prototypes, before + 0.1)


def test_the_mask_token_starts_at_zero_and_is_not_the_teachers():
    task = build("ibot")
    assert (task.mask_token == 0).all()
    assert not any("mask_token" in k for k in task.teacher.state_dict())
    task.train()(batch_for("ibot"), CLOCK).loss.backward()
    assert task.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", ["block", "random"])
def test_half_of_the_crops_lose_up_to_half_of_their_patches(shape):
    mask = build("ibot", mask_shape=shape).choose(KEYS, (14, 14))
    assert mask.shape == (800, 196)
    share = mask.float().mean(1)
    hidden = share[share > 0]
    assert len(hidden) / 800 == pytest.approx(0.5, abs=5 * 0.5 / 800**0.5)
    assert share.max() <= 0.5
    assert hidden.min() > 0.04
    assert hidden.mean().item() == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(mask[:400], mask[400:])


def test_the_mask_of_a_picture_does_not_depend_on_its_neighbors():
    task = build("ibot")
    mask = task.choose(KEYS[:8], (14, 14)).unflatten(0, (2, 8))
    alone = task.choose(KEYS[3:5], (14, 14)).unflatten(0, (2, 2))
    assert torch.equal(mask[:, 3:5], alone)


def test_last_layers_stay_through_their_frozen_epoch():
    task = build("ibot", freeze_last_layer=1, shared_head=False)
    start = copy.deepcopy(task.state_dict())
    train(task, [batch_for("ibot", i) for i in range(2)])
    for name in ("head", "patch_head"):
        for k in ("prototypes", "gain"):
            assert torch.equal(task.state_dict()[f"{name}.{k}"], start[f"{name}.{k}"])
        assert not torch.equal(
            task.state_dict()[f"{name}.mlp.0.weight"], start[f"{name}.mlp.0.weight"]
        )


def test_the_teacher_is_kept_and_the_papers_head_is_shared():
    task = build("ibot")
    assert task.kept() is task.teacher.module
    cfg = RECIPES["paper"].method
    assert cfg.shared_head
    assert not cfg.norm_last_layer
    assert sum(v.count for v in cfg.views) == 12


def test_fewer_than_two_crops_and_networks_without_cls_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: IBOT needs 2 global crops, not 1"):
        IBOT(IBOT.Config(views=(View(),)), PatchNet())
    net = PatchNet()
    net.prefix = 0
    with pytest.raises(ValueError, match="needs a CLS token"):
        IBOT(IBOT.Config(), net)


def test_entropy_is_at_most_that_of_a_uniform_teacher():
    assert build("ibot")(batch_for("ibot"), CLOCK).logs["teacher_entropy"] <= math.log(12)


@pytest.mark.parametrize(("batch_norm", "rows"), [(True, 256), (False, 7)])
def test_only_a_head_with_batch_norm_sees_patches_that_are_not_masked(batch_norm, rows):
    task = build("ibot", batch_norm_in_head=batch_norm).train()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask.view(-1)[[0, 3, 20, 21, 22, 100, 255]] = True
    task.choose = lambda key, grid: mask
    seen = []
    task.head.register_forward_hook(lambda _, inputs, out: seen.append(len(inputs[0])))
    loss = task(batch_for("ibot"), CLOCK).loss
    assert loss.isfinite()
    assert seen[-1] == rows
