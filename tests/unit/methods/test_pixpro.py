import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, train, views

from saccade import pretraining, stage, training
from saccade import run as runs
from saccade.backbones import create
from saccade.core import Clock, StrongSet, View
from saccade.engine.health import Health
from saccade.methods.pixpro import RECIPES, PixPro, agreement
from saccade.nn.parts import Ema
from saccade.nn.pixels import cells
from saccade.recipe import BackboneConfig
from saccade.systems.detect import Detect

BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
EACH = (View(size=32), View(size=32))


def pixpro(**settings):
    """Maps are the pictures themselves: cells of three numbers."""
    task = PixPro(PixPro.Config(hidden=4, dim=3, views=EACH, **settings), Pixels(3))
    task.projector = nn.Identity()
    task.teacher_projector = Ema(nn.Identity())
    return task


def same_crops(a, b, flips=(False, False)):
    """Both views are the whole picture, one of them maybe mirrored."""
    n = len(a)
    return dataclasses.replace(
        views(a, b), boxes=[BOXES.expand(n, 4)] * 2, flips=[torch.full((n,), f) for f in flips]
    )


@pytest.mark.parametrize("unit_transform", [True, False])
def test_equals_the_equation_written_as_loops(unit_transform):
    torch.manual_seed(0)
    task, batch = pixpro(unit_transform=unit_transform), views(*torch.randn(2, 2, 3, 3, 3))
    near = task.near(batch, (3, 3))
    assert 0 < near.sum() < near.numel()
    total = 0.0
    for i in range(2):
        for view, other in ((0, 1), (1, 0)):
            x = [batch.images[view][i, :, r, c] for r in range(3) for c in range(3)]
            z = [batch.images[other][i, :, r, c] for r in range(3) for c in range(3)]
            g = [task.transform(v[:, None, None]).flatten().detach() for v in x]
            g = [v / v.norm() for v in g] if unit_transform else g
            met, found = 0, 0.0
            for k in range(9):
                y = sum(
                    max(float(F.cosine_similarity(x[k], x[j], 0)), 0) ** 2 * g[j] for j in range(9)
                )
                for j in range(9):
                    if near[i, k, j] if view == 0 else near[i, j, k]:
                        met += 1
                        found += float(F.cosine_similarity(y, z[j], 0))
            total -= 2 * found / (met + 1e-6)
    assert task(batch, CLOCK).loss.item() == pytest.approx(total / 2, rel=1e-4)


def test_matching_cells_give_minus_four_and_only_they():
    x = torch.eye(3)[:, :, None].expand(3, 3, 3).permute(1, 0, 2)[None]  # rows of equal cells
    task = pixpro(layers=0)
    assert task(same_crops(x, x), CLOCK).loss.item() == pytest.approx(-4, abs=1e-4)
    mirrored = torch.rand(1, 3, 3, 1).expand(1, 3, 3, 3)  # rows that are alike, none equal
    assert task(same_crops(mirrored, mirrored), CLOCK).loss > -4 + 1e-3
    assert task(same_crops(x, -x), CLOCK).loss.item() == pytest.approx(4, abs=1e-4)


def test_a_mirrored_view_is_met_column_by_column():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 7)
    task = pixpro(layers=0, gamma=64.0)
    loss = task(same_crops(x, x.flip(-1), (False, True)), CLOCK).loss
    assert loss.item() == pytest.approx(-4, abs=0.2)
    assert task(same_crops(x, x.flip(-1)), CLOCK).loss > -2


def test_crops_that_do_not_meet_cost_nothing_and_count():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 3, 3)
    far = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 1.0, 1.0]])
    there = torch.tensor([[0.6, 0.6, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    flips = [torch.zeros(2, dtype=torch.bool)] * 2
    task = pixpro(layers=0)
    one = task(
        dataclasses.replace(views(x[1:], x[1:]), boxes=[BOXES] * 2, flips=[flips[0][:1]] * 2), CLOCK
    )
    both = task(dataclasses.replace(views(x, x), boxes=[far, there], flips=flips), CLOCK)
    torch.testing.assert_close(both.loss, one.loss / 2)
    y = torch.randn(1, 4, 2, requires_grad=True)
    alone = agreement(y, torch.randn(1, 4, 2), torch.zeros(1, 4, 4, dtype=torch.bool))
    alone.backward()
    assert alone.item() == 0
    assert (y.grad == 0).all()


def test_the_threshold_itself_is_too_far():
    boxes = [torch.tensor([[0.0, 0.0, 0.375, 0.5]]), torch.tensor([[0.1875, 0.25, 0.5625, 0.75]])]
    x = torch.randn(1, 3, 1, 1)
    batch = dataclasses.replace(views(x, x), boxes=boxes, flips=[torch.tensor([False])] * 2)
    assert not pixpro(threshold=0.5).near(batch, (1, 1)).any()
    assert pixpro(threshold=0.51).near(batch, (1, 1)).all()


def test_propagation_keeps_orthogonal_and_equal_cells():
    task = pixpro(layers=0)
    orthogonal = torch.eye(3)[None, :, :, None]  # three cells
    torch.testing.assert_close(task.propagate(orthogonal), torch.eye(3)[None])
    equal = torch.randn(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(task.propagate(equal), cells(equal))


def test_propagation_ignores_lengths_and_follows_the_order_of_cells():
    torch.manual_seed(0)
    task, x = pixpro(layers=0), torch.randn(2, 3, 1, 6)
    y = task.propagate(x)
    torch.testing.assert_close(task.propagate(x * torch.rand(2, 1, 1, 6).add(0.5)), y)
    order = torch.randperm(6)
    torch.testing.assert_close(task.propagate(x[..., order]), y[:, order])


def test_a_large_gamma_leaves_distinct_cells_alone_and_a_small_one_has_a_gradient():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 1, 5, requires_grad=True)
    torch.testing.assert_close(
        pixpro(layers=0, gamma=1e4).propagate(x), cells(x), atol=1e-3, rtol=0
    )
    pixpro(layers=0, gamma=0.5).propagate(x)[..., 0].sum().backward()
    assert x.grad.isfinite().all()


def test_propagation_stays_within_one_image():
    torch.manual_seed(0)
    task, x = pixpro(), torch.randn(3, 3, 2, 2)
    torch.testing.assert_close(task.propagate(x)[1:2], task.propagate(x[1:2]))


def test_positives_and_propagation_are_float32_under_autocast():
    torch.manual_seed(0)
    task, batch = pixpro(layers=0), views(*torch.randn(2, 4, 3, 7, 7))
    x = batch.images[0]
    near, y = task.near(batch, (7, 7)), task.propagate(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.near(batch, (7, 7)), near)
        assert torch.equal(task.propagate(x), y)
        loss = agreement(y, cells(batch.images[1]), near)
    assert torch.equal(loss, agreement(y, cells(batch.images[1]), near))


def test_no_gradient_reaches_the_averaged_network_and_its_momentum_climbs():
    task = build("pixpro", momentum=0.99).train()
    task(batch_for("pixpro"), CLOCK).loss.backward()
    assert all(
        p.grad is None for m in (task.teacher, task.teacher_projector) for p in m.parameters()
    )
    for step, momentum in ((4, 0.995), (9, 1.0)):  # before the keys of steps 5 and 10 of 10
        with torch.no_grad():
            task.encoder.body[0].weight.fill_(1.0)
            task.teacher.module.body[0].weight.fill_(0.0)
        task.after_update(Clock(step, 10, 5))
        got = task.teacher.module.body[0].weight
        torch.testing.assert_close(got, torch.full_like(got, 1 - momentum))
    assert task.kept() is task.encoder


def test_momentum_goes_on_where_a_resumed_run_stood():
    batches = [batch_for("pixpro", i) for i in range(4)]
    task = build("pixpro", momentum=0.5)
    train(task, batches[:2])
    again = build("pixpro", momentum=0.5)
    again.load_state_dict(task.state_dict())
    for t in (task, again):
        t.encoder.body[0].weight.data += 1
        t.after_update(Clock(2, 4, 2))
    assert torch.equal(task.teacher.module.body[0].weight, again.teacher.module.body[0].weight)


@pytest.mark.parametrize("instance", ["byol", "simclr"])
def test_the_instance_branch_trains_its_heads_and_pools_behind_them(instance):
    task = build("pixpro", instance=instance, instance_weight=0.5).train()
    plain = copy.deepcopy(task)
    batch = batch_for("pixpro")
    step = task(batch, CLOCK)
    h, k = (net.features(batch.images[0]) for net in (plain.encoder, plain.teacher.module))
    z = F.normalize(plain.teacher_instance(k).mean((2, 3)), dim=-1)
    q = plain.instance(h)
    q = F.normalize((plain.predictor(q) if instance == "byol" else q).mean((2, 3)), dim=-1)
    if instance == "byol":
        want = -2 * (q * z).sum(-1).mean()
    else:
        logits = [[float(a @ b) / 0.2 for b in z] for a in q.detach()]
        want = torch.stack(
            [torch.tensor(r).logsumexp(0) - r[i] for i, r in enumerate(logits)]
        ).mean()
    got = copy.deepcopy(task).whole(h, k)
    torch.testing.assert_close(got.detach(), want.detach())
    step.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in task.instance.parameters())
    assert all(p.grad is None for p in task.teacher_instance.parameters())


def test_the_instance_loss_is_weighted_and_added():
    batch = batch_for("pixpro")
    losses = [
        build("pixpro", instance="byol", instance_weight=w)(batch, CLOCK).loss
        for w in (0.0, 1.0, 2.0)
    ]
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_layers_of_the_transform(layers):
    task = build("pixpro", layers=layers)
    assert sum(isinstance(m, nn.Conv2d) for m in task.transform.modules()) == layers


def pyramid():
    torch.manual_seed(0)
    encoder = create(BackboneConfig(name="resnet10_w16", image_size=64, stem="paper"))
    cfg = PixPro.Config(hidden=8, dim=8, pyramid=8, tower=1, views=(View(count=2, size=64),))
    return PixPro(cfg, encoder).train()


def test_pretrained_pyramid_and_tower_stand_where_the_detector_has_them():
    task = pyramid()
    task(noise(b=4, sizes=(64, 64)), CLOCK).loss.backward()
    assert all(p.grad is not None for p in task.neck.parameters())
    assert all(p.grad is None for p in task.teacher_neck.parameters())
    heads = task.heads()
    system = Detect(Detect.Config(classes=("a",), width=8, hidden=8), task.encoder)
    own = system.state_dict()
    assert {k: v.shape for k, v in heads.items()} == {k: own[k].shape for k in heads}
    assert "neck.fpn.layer_blocks.3.0.weight" in heads
    assert "rpn.head.conv.0.0.weight" in heads
    assert not any("blocks.0." in k for k in heads)


def test_the_pyramid_is_the_detectors_own_but_for_its_finest_level():
    task = pyramid().eval()
    system = Detect(Detect.Config(classes=("a",), width=8, hidden=8), task.encoder).eval()
    system.load_state_dict(system.state_dict() | task.heads())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = system.neck(task.encoder, x)
        seen = []
        task.neck.fpn.register_forward_hook(lambda _, inputs, out: seen.extend(out.values()))
        task(noise(b=2, sizes=(64, 64)), CLOCK)
        seen.clear()
        maps, y = [], task.encoder.stem(x)
        for i in range(4):
            y = task.encoder.stage(y, i)
            maps.append(y)
        task.neck(maps[1:])
    for mine, key in zip(seen, ("1", "2", "3"), strict=True):
        torch.testing.assert_close(mine, theirs[key])


@pytest.mark.slow
def test_a_run_with_a_pyramid_leaves_its_layers_for_the_detector(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(4):
        pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    run = runs.assemble(
        method="pixpro",
        recipe="demo",
        config=None,
        out=None,
        flags={"data": str(tmp_path / "data"), "steps": 1, "batch_size": 4},
        sets=["method.pyramid=8", "method.tower=1", "method.hidden=8", "engine.workers=1"],
    )
    pretraining.pretrain(run, tmp_path / "run")
    wanted = runs.assemble_train(
        system="detect",
        recipe="small",
        config=None,
        out=None,
        flags={"data": "any", "weights": str(tmp_path / "run")},
        sets=["system.width=8", "system.hidden=8", 'system.classes=["a"]'],
    )
    built = training.build(wanted).state_dict()
    state = load_file(tmp_path / "run" / stage.HEADS)
    assert len(state) > 20
    assert all(torch.equal(built[k], v) for k, v in state.items())


def test_a_pyramid_without_stages_and_a_tower_without_a_pyramid_are_refused():
    with pytest.raises(ValueError, match=r"method\.pyramid: 8 needs a backbone in stages"):
        PixPro(PixPro.Config(pyramid=8), ConvNet())
    with pytest.raises(ValueError, match=r"method\.tower: 2 convolutions stand behind a pyramid"):
        PixPro(PixPro.Config(tower=2), ConvNet())


def test_views_whose_cells_cannot_be_located_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: PixPro compares 2 views of one size"):
        PixPro(PixPro.Config(views=(View(size=32), View(size=64))), ConvNet())
    strong = View(count=2, strong=StrongSet(name="randaugment"))
    with pytest.raises(ValueError, match=r"strong operations move what a cell shows"):
        PixPro(PixPro.Config(views=(strong,)), ConvNet())


def test_the_papers_two_views_differ_in_blur_and_solarization():
    one, two = RECIPES["paper"].method.views
    assert (one.blur, one.solarize, two.blur, two.solarize) == (1.0, 0.0, 0.1, 0.2)


@pytest.mark.parametrize("name", ["pixpro", "pixcontrast"])
def test_health_sees_the_cells_that_are_compared_and_notices_when_they_are_all_the_same(name):
    torch.manual_seed(0)
    task, health = build(name).train(), Health()
    step = task(batch_for(name), CLOCK)
    assert health.look(step.features, step.outputs)["output_std"] > 0.05
    last = [m for m in task.teacher_projector.modules() if isinstance(m, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.ones_(last.bias)
    for _ in range(2):
        step = task(batch_for(name), CLOCK)
        health.look(step.features, step.outputs)
    assert any("nearly constant" in line for line in health.warnings())
