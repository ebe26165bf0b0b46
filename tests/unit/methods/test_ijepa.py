import math

import pytest
import torch
import torch.nn.functional as F
from lightly.data.ijepa_collate import IJEPAMaskCollator
from toys import CLOCK, PatchNet, batch_for, build, noise

from saccade import backbones, weights
from saccade.core import Clock, View
from saccade.methods.ijepa import IJEPA, Predictor, squares
from saccade.nn.positions import sincos_2d
from saccade.recipe import BackboneConfig

PUBLISHED = {"min_keep": 10, "predictor_dim": 8, "predictor_depth": 1, "predictor_heads": 2}


def of_grid(side=14, **settings):
    """The published sampler over a grid of that many patches a side."""
    encoder = PatchNet(grid=(side, side), prefix=0)
    encoder.image_size = 8 * side
    cfg = IJEPA.Config(views=(View(size=8 * side),), **(PUBLISHED | settings))
    return IJEPA(cfg, encoder)


def keys(n, seed=0):
    return noise(seed, b=n, sizes=(1,)).key + 1000 * seed


@pytest.mark.parametrize("sampler", ["paper", "official"])
def test_blocks_are_rectangles_of_the_stated_sizes_and_the_context_has_no_target(sampler):
    task = of_grid(sampler=sampler)
    for seed in range(10):
        context, targets = task.choose(keys(4, seed))
        for b in range(4):
            for block in targets[b]:
                rows, columns = block // 14, block % 14
                height, width = (int(v.max() - v.min()) + 1 for v in (rows, columns))
                assert len(set(block.tolist())) == height * width == len(block)
                assert 0.11 <= len(block) / 196 <= 0.22  # .15 to .2 before sides are rounded
                assert 0.6 <= height / width <= 1.8  # .75 to 1.5
            assert len(set(context[b].tolist())) == context.shape[1] > 10
            assert not set(context[b].tolist()) & set(targets[b].flatten().tolist())


@pytest.mark.parametrize("area", [0.0, 0.3, 0.6, 0.999])
def test_sizes_are_the_equation(area):
    """Area a and height / width r: sides sqrt(a r) and sqrt(a / r), rounded."""
    task = of_grid()
    patches = int(196 * (0.15 + 0.05 * area))
    ratio = 0.75 + 0.75 * 0.25
    want = (round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio)))
    assert task.target_size(area, 0.25) == want
    side = round(math.sqrt(int(196 * (0.85 + 0.15 * area))))
    assert task.context_size(area) == (side, side)


@pytest.mark.parametrize("side", [8, 14, 16])
def test_official_sizes_equal_lightlys(side):
    task = of_grid(side, sampler="official", min_keep=4)
    theirs = IJEPAMaskCollator(8 * side, 8, (0.85, 1.0), (0.15, 0.2), (0.75, 1.5), 1, 4, 4)
    for seed in range(20):
        draw = torch.rand(1, generator=torch.Generator().manual_seed(seed)).item()
        for own, scale, ratio in (
            (task.target_size(draw, 0.9), (0.15, 0.2), (0.75, 1.5)),
            (task.context_size(draw), (0.85, 1.0), (1.0, 1.0)),
        ):
            g = torch.Generator().manual_seed(seed)
            assert own == theirs._sample_block_size(g, scale, ratio)


def test_official_places_are_as_frequent_as_lightlys():
    """How often a picture has each patch in a target (up to 2 of 4), and in its context (.7)."""
    side, n = 6, 800
    torch.manual_seed(0)
    task = of_grid(side, sampler="official", min_keep=2)
    theirs = IJEPAMaskCollator(8 * side, 8, (0.85, 1.0), (0.15, 0.2), (0.75, 1.5), 1, 4, 2)
    _, context, targets = theirs([torch.zeros(1)] * n)
    size = torch.Generator().manual_seed(0)  # lightly's of its first batch
    size = theirs._sample_block_size(size, (0.15, 0.2), (0.75, 1.5))
    key = keys(n)
    task.target_size = lambda a, r: size
    own_context, own_targets = task.choose(key)
    for own, other, off in (
        (own_targets.flatten(), torch.stack(targets).flatten(), 0.2),  # 4 deviations
        (own_context.flatten(), context[0].flatten(), 0.1),
    ):
        share, want = (x.bincount(minlength=36) / n for x in (own, other))
        assert (share - want).abs().max() < off
        assert torch.equal(share == 0, want == 0)
    assert own_targets.shape[2] == size[0] * size[1] == targets[0].shape[1]


def test_the_official_sampler_never_takes_the_last_row_and_column_and_ours_does():
    seen = {}
    for sampler in ("official", "paper"):
        task, places = of_grid(sampler=sampler), torch.zeros(196, dtype=torch.long)
        for seed in range(6):
            context, targets = task.choose(keys(40, seed))
            places += torch.cat([context.flatten(), targets.flatten()]).bincount(minlength=196)
        seen[sampler] = places.unflatten(0, (14, 14)) > 0
    assert seen["paper"].all()
    assert seen["official"][:-1, :-1].all()
    assert not seen["official"][-1].any()
    assert not seen["official"][:, -1].any()


def test_larger_contexts_lose_their_last_patches_officially_and_any_of_them_in_ours():
    lost = {}
    for sampler in ("official", "paper"):
        task = of_grid(sampler=sampler)
        context, targets = task.choose(keys(200))
        height, width = task.context_size(0.0)  # officially all contexts are 13 x 13 at the corner
        square = squares(*torch.zeros(2, 1, 1).long(), (height, width), (14, 14))[0, 0]
        rows = []
        for b in range(200):
            free = set(square.nonzero()[:, 0].tolist()) - set(targets[b].flatten().tolist())
            gone = sorted(free - set(context[b].tolist()))
            if sampler == "official":
                assert gone == sorted(free)[context.shape[1] :]
            rows += [patch // 14 for patch in gone]
        lost[sampler] = sum(rows) / len(rows)
    assert lost["official"] > lost["paper"] + 2


def test_sizes_are_shared_by_a_batch_and_change_from_batch_to_batch():
    task = of_grid()
    sizes = {task.choose(keys(8, seed))[1].shape for seed in range(20)}
    assert len(sizes) > 3


def test_a_context_that_is_too_small_gives_up_a_target():
    """All targets together leave 3 of 16 patches; without the last one more are left."""
    task = of_grid(4, min_keep=2, context_scale=(1.0, 1.0), target_scale=(0.5, 0.5))
    context, targets = task.choose(keys(200))
    overlaps = 0
    for b in range(200):
        context_b, first = set(context[b].tolist()), set(targets[b, 0].tolist())
        union = set(targets[b].flatten().tolist())
        assert len(context_b) > 2
        if len(union) <= 13:
            assert not context_b & union
        else:
            overlaps += bool(context_b & union)
            assert not context_b & first
    assert overlaps


def test_loss_is_the_mean_over_targets_written_as_loops():
    task, batch = build("ijepa"), batch_for("ijepa", b=2)
    x = batch.images[0]
    context, targets = task.choose(batch.key)
    h = task.teacher.module.encode(task.teacher.module.tokens(x))
    tokens = task.encoder.tokens(x)
    seen = task.encoder.encode(torch.stack([tokens[b, context[b]] for b in range(2)]))
    z, total = task.predictor(seen, context, targets), []
    for b in range(2):
        for t in range(4):
            for m, patch in enumerate(targets[b, t]):
                y = h[b, patch]
                y = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt()
                for a in (z[b, t, m] - y).abs().tolist():
                    total.append(0.5 * a * a if a < 1 else a - 0.5)
    assert task(batch, CLOCK).loss.item() == pytest.approx(sum(total) / len(total), rel=1e-4)


def test_guessing_zero_costs_the_closed_form_of_normal_features():
    """E smooth_l1(z) of normal z is the integral below, about .425."""
    task, batch = build("ijepa"), batch_for("ijepa")
    task.teacher.module.encode = lambda tokens: torch.randn(len(tokens), 16, 512)
    task.predictor.forward = lambda seen, context, targets: torch.zeros(*targets.shape, 512)
    density, inside = math.exp(-0.5) / math.sqrt(2 * math.pi), math.erf(1 / math.sqrt(2))
    want = 0.5 * (inside - 2 * density) + 2 * density - 0.5 * (1 - inside)
    assert want == pytest.approx(0.425, abs=1e-3)
    assert task(batch, CLOCK).loss.item() == pytest.approx(want, rel=0.02)


def test_targets_are_predicted_apart_and_swap_with_their_blocks():
    task, batch = build("ijepa"), batch_for("ijepa", b=2)
    context, targets = task.choose(batch.key)
    seen = torch.randn(2, context.shape[1], 16)
    z = task.predictor(seen, context, targets)
    swapped = task.predictor(seen, context, targets[:, [1, 0, 2, 3]])
    torch.testing.assert_close(swapped, z[:, [1, 0, 2, 3]])
    alone = task.predictor(seen, context, targets[:, 2:3])
    torch.testing.assert_close(alone[:, 0], z[:, 2])


def test_predictor_knows_the_context_by_its_places_not_its_order():
    task, batch = build("ijepa"), batch_for("ijepa", b=2)
    context, targets = task.choose(batch.key)
    seen, mixed = torch.randn(2, context.shape[1], 16), torch.randperm(context.shape[1])
    z = task.predictor(seen, context, targets)
    other = task.predictor(seen[:, mixed], context[:, mixed], targets)
    torch.testing.assert_close(other, z, atol=1e-5, rtol=1e-4)


def test_encoder_sees_the_context_alone_and_the_teacher_the_whole_picture():
    task, batch = build("ijepa"), batch_for("ijepa", b=1)
    seen = {}
    for name, net in (("encoder", task.encoder), ("teacher", task.teacher.module)):
        net.blocks.register_forward_pre_hook(lambda _, x, n=name: seen.update({n: x[0].shape[1]}))
    context, _ = task.choose(batch.key)
    task(batch, CLOCK)
    assert seen == {"encoder": context.shape[1], "teacher": 16}


def test_teacher_has_no_gradient_starts_equal_and_follows_in_a_line():
    task, batch = build("ijepa", momentum=0.9), batch_for("ijepa")
    pairs = list(zip(task.teacher.module.parameters(), task.encoder.parameters(), strict=True))
    assert all(torch.equal(t, s) for t, s in pairs)
    task(batch, CLOCK).loss.backward()
    assert all(t.grad is None for t, _ in pairs)
    before = [t.clone() for t, _ in pairs]
    with torch.no_grad():
        for _, s in pairs:
            s.add_(1.0)
    task.after_update(Clock(5, 10, 5))  # half-way: momentum .95
    for (t, _), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(t, old + 0.05)


@pytest.mark.parametrize("name", ["ijepa", "data2vec"])
def test_a_momentum_of_one_freezes_the_teacher_to_the_bit(name):
    task = build(name, momentum=1.0)
    before = [t.clone() for t in task.teacher.parameters()]
    with torch.no_grad():
        for p in task.encoder.parameters():
            p.add_(1.0)
    task.after_update(CLOCK)
    assert all(torch.equal(a, b) for a, b in zip(before, task.teacher.parameters(), strict=True))


def test_what_a_block_adds_is_divided_by_the_root_of_twice_its_number():
    encoder = backbones.create(BackboneConfig(name="vit_pico_patch4_gap_32", image_size=32))
    task = IJEPA(IJEPA.Config(min_keep=4, views=(View(size=32),)), encoder)
    for blocks in (encoder.net.blocks, task.predictor.blocks):
        for i, block in enumerate(blocks):
            for layer in (block.attn.proj, block.mlp.fc2):
                want = 0.02 / math.sqrt(2 * (i + 1))
                assert layer.weight.std().item() == pytest.approx(want, rel=0.05)
            assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(encoder.net.pos_embed[0], sincos_2d((8, 8), 96))
    assert not encoder.net.pos_embed.requires_grad
    assert task.kept()(torch.randn(1, 3, 32, 32)).shape == (1, 96)


def test_pooled_vector_of_encoders_without_cls_is_the_mean_patch_after_the_norm():
    encoder = backbones.create(BackboneConfig(name="vit_pico_patch4_gap_32", image_size=32)).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(x), encoder.features(x).mean((2, 3)))
    assert F.layer_norm(encoder.encode(encoder.tokens(x)), (96,)).shape == (2, 64, 96)


def test_of_the_official_files_the_average_is_taken(tmp_path):
    cfg = BackboneConfig(name="vit_pico_patch4_gap_32", image_size=32)
    held = {"epoch": 1, "predictor": {"module.predictor_embed.weight": torch.zeros(2, 2)}}
    nets = {name: backbones.create(cfg) for name in ("encoder", "target_encoder")}
    for name, net in nets.items():
        held[name] = {f"module.{k}": v for k, v in net.net.state_dict().items()}
    torch.save(held, tmp_path / "x.pth.tar")
    found = weights.load(tmp_path / "x.pth.tar", backbone=cfg.name)
    assert (found.layout, found.part, found.others) == ("I-JEPA", "target_encoder", ("encoder",))
    own = found.backbone.net.state_dict()
    theirs = nets["target_encoder"].net.state_dict()
    assert all(torch.equal(own[k], v) for k, v in theirs.items())
    assert not torch.equal(own["pos_embed"], nets["encoder"].net.pos_embed)


@pytest.mark.parametrize(
    ("encoder", "settings", "message"),
    [
        (PatchNet(), {}, "IJEPA trains patches alone and would leave a CLS token behind"),
        (PatchNet(prefix=0), {"views": (View(size=48),)}, "views.0.size: 48 pixels"),
        (PatchNet(prefix=0), {"views": (View(count=2, size=32),)}, "IJEPA sees 1 view"),
        (PatchNet(prefix=0), {}, "min_keep: 10 patches, but a context may have 9"),
        (PatchNet(prefix=0), {"targets": 0}, r"method\.targets: 0 blocks"),
        (PatchNet(prefix=0), {"target_scale": (0.0, 0.1)}, r"target_scale=\(0.0, 0.1\) of 16"),
        (PatchNet(prefix=0), {"predictor_heads": 5}, "method.predictor_heads: 5 heads"),
    ],
)
def test_what_does_not_fit_is_refused(encoder, settings, message):
    cfg = {"views": (View(size=32),), "sampler": "official"} | settings
    with pytest.raises(ValueError, match=message):
        IJEPA(IJEPA.Config(**cfg), encoder)


def test_predictor_starts_with_fixed_positions_and_a_small_mask_token():
    predictor = Predictor(PatchNet(prefix=0), 8, 1, 2)
    assert torch.equal(predictor.positions, sincos_2d((4, 4), 8))
    assert predictor.mask_token.ndim == 4  # or weight decay would skip it
    assert 0 < predictor.mask_token.abs().max() < 0.1
