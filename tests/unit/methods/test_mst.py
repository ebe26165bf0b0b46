import copy
import re

import pytest
import torch
from timm.layers import DropPath
from toys import CLOCK, PatchNet, batch_for, build, noise, train, views

from saccade import microscope
from saccade.backbones import create
from saccade.core import Clock, View, Views
from saccade.methods.mst import MST, RECIPES, Decoder
from saccade.nn import random
from saccade.recipe import BackboneConfig

KEYS = random.keys(0, 0, torch.arange(50))
WEIGHTS = ("weight", "bias")


def mst(encoder=None, **settings):
    torch.manual_seed(0)
    small = {"hidden": 16, "bottleneck": 8, "prototypes": 12, "decoder_dim": 8}
    return MST(MST.Config(**small | settings), encoder or PatchNet())


@pytest.mark.parametrize(
    "nothing",
    [
        {"masked_share": 0.0},
        {"num": 1000},
        {"masking": "none"},
        {"masking": "random", "masked_share": 0.0},
    ],
    ids=str,
)
def test_without_masks_and_restoration_it_is_dino_to_the_bit(nothing):
    from saccade import methods

    dino = methods.get("dino")
    torch.manual_seed(0)
    cfg = dino.Config(hidden=16, bottleneck=8, prototypes=12, freeze_last_layer=0)
    one = dino(cfg, PatchNet())
    two = mst(restore_weight=0.0, freeze_last_layer=0, **nothing)
    batches = [batch_for("mst", i) for i in range(3)]
    assert train(one, batches) == train(two, batches)
    theirs, ours = one.state_dict(), two.state_dict()
    assert set(ours) - set(theirs) == {k for k in ours if k.startswith(("decoder.", "mask_token"))}
    assert all(torch.equal(v, ours[k]) for k, v in theirs.items())


def test_the_same_with_stochastic_depth_in_timms_network():
    from saccade import methods

    dino = methods.get("dino")
    torch.manual_seed(0)
    cfg = BackboneConfig(name="vit_nano_patch8_64", image_size=32, drop_path=0.3)
    small = {"hidden": 16, "bottleneck": 8, "prototypes": 12}
    one = dino(dino.Config(**small), create(cfg))
    torch.manual_seed(0)
    two = MST(MST.Config(**small, decoder_dim=8, masking="none", restore_weight=0.0), create(cfg))
    losses = []
    for task in (one, two):
        torch.manual_seed(1)
        losses.append(task.train()(batch_for("mst", b=2), CLOCK).loss)
    assert torch.equal(*losses)


def attentions(m=100, n=20):
    torch.manual_seed(0)
    return torch.rand(m, n).softmax(1)


@pytest.mark.parametrize(("num", "count"), [(2, 10), (3, 6), (8, 2), (21, 0)])
def test_certain_masks_are_exactly_the_lowest_patches(num, count):
    a = attentions()
    mask = mst(num=num, masked_share=1.0).choose(a, KEYS)
    for row, chosen in zip(a.tolist(), mask, strict=True):
        lowest = sorted(range(20), key=row.__getitem__)[:count]
        assert chosen.nonzero().flatten().tolist() == sorted(lowest)


@pytest.mark.parametrize(("num", "count"), [(2, 98), (4, 49), (8, 24), (16, 12)])
def test_candidates_among_196_patches_are_those_of_attmasks_low_rule(num, count):
    a = attentions(n=196)
    lowest = a.topk(int(196 / num), largest=False).indices
    mask = mst(num=num, masked_share=1.0).choose(a, KEYS)
    assert torch.equal(mask, torch.zeros_like(mask).scatter(1, lowest, True))
    assert (mask.sum(1) == count).all()


def test_the_opposite_rule_hides_the_most_attended():
    a = attentions()
    low = mst(num=4, masked_share=1.0).choose(a, KEYS)
    high = mst(num=4, masked_share=1.0, masking="high").choose(a, KEYS)
    assert torch.equal(high, mst(num=4, masked_share=1.0).choose(-a, KEYS))
    assert not (low & high).any()


def test_candidates_are_masked_with_their_chance_and_others_never():
    keys = random.keys(0, 0, torch.arange(2000))
    a = attentions(4000)
    mask = mst(num=4, masked_share=0.3).choose(a, keys)
    order = a.argsort(1)
    assert not mask.gather(1, order[:, 5:]).any()
    share = mask.gather(1, order[:, :5]).float()
    assert (share.mean(0) - 0.3).abs().max() < 5 * (0.3 * 0.7 / 4000) ** 0.5
    assert mask.sum(1).max() <= 5
    assert not torch.equal(mask[:2000], mask[2000:])  # the two views draw apart


def test_one_over_one_of_the_patches_is_random_masking():
    a = attentions()
    plain = mst(masking="random", masked_share=0.3).choose(a, KEYS)
    assert torch.equal(mst(num=1, masked_share=0.3).choose(a, KEYS), plain)
    assert plain.float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_ties_are_broken_by_place():
    mask = mst(num=4, masked_share=1.0).choose(torch.ones(100, 8), KEYS)
    assert torch.equal(mask, (torch.arange(8) < 2).expand(100, 8))


def masks_of(task, batch):
    found = []
    task.choose = lambda *args: found.append(MST.choose(task, *args)) or found[-1]
    task(batch, CLOCK)
    return found[0]


def test_masks_follow_the_teachers_attention_to_the_same_view():
    a, b = noise().images
    task = mst(num=2, masked_share=1.0).eval()
    one, two = masks_of(task, views(a, b)).chunk(2)
    swapped = masks_of(task, views(b, a)).chunk(2)
    assert torch.equal(one, swapped[1])
    assert torch.equal(two, swapped[0])
    assert not torch.equal(one, two)
    block = task.teacher.module.blocks
    seen = []
    block.layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.teacher(a)
    y = block.layers[-1].norm1(seen[0])  # [B, P, D]
    w, bias = block.layers[-1].self_attn.in_proj_weight, block.layers[-1].self_attn.in_proj_bias
    q, k, _ = (y @ w.T + bias).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    row = (q[:, :, 0, None] @ k.mT / 8**0.5).softmax(-1)[:, :, 0, 1:].mean(1)  # [B, N]
    order = row.argsort(1)
    assert one.gather(1, order[:, :8]).all()


def test_the_teacher_looks_once_at_whole_pictures():
    task, passes = build("mst"), []
    task.teacher.module.embed.register_forward_hook(lambda _, inputs, out: passes.append(out.shape))
    task(batch_for("mst"), CLOCK)
    assert passes == [(16, 16, 4, 4)]


def test_masks_do_not_alter_the_teacher():
    batch = batch_for("mst")
    steps = [build("mst", masking=how, masked_share=0.9, num=1) for how in ("none", "low")]
    logs = [task(batch, CLOCK) for task in steps]
    assert torch.equal(logs[0].logs["teacher_entropy"], logs[1].logs["teacher_entropy"])
    for task in steps:
        task.recenter()
        assert task.center.any()
    assert torch.equal(steps[0].center, steps[1].center)
    assert torch.equal(logs[0].features, logs[1].features)
    assert logs[0].loss != logs[1].loss


def test_the_mask_token_has_a_gradient_only_where_something_is_masked():
    for share, moves in ((0.0, False), (1.0, True)):
        task = build("mst", masked_share=share).train()
        task(batch_for("mst"), CLOCK).loss.backward()
        assert bool(task.mask_token.grad.abs().sum() > 0) is moves


def test_a_hidden_patch_keeps_its_position_and_loses_its_pixels():
    task = mst(num=1, masked_share=1.0)
    seen = []
    encode = task.encoder.encode
    task.encoder.encode = lambda tokens: seen.append(tokens) or encode(tokens)
    task(batch_for("mst"), CLOCK)
    want = task.mask_token + task.encoder.positions(32, 32)
    torch.testing.assert_close(seen[0], want.expand(16, 16, 16))
    assert len(seen) == 2  # local crops come whole
    torch.testing.assert_close(seen[1], task.encoder.tokens(torch.cat(batch_for("mst").images[2:])))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 96), (32, 64)])
def test_the_decoder_gives_pictures_of_any_size(height, width):
    encoder = PatchNet()
    encoder.stride = 16
    net = Decoder(encoder, 16)
    assert len(net.blocks) == 4
    grid = (height // 16, width // 16)
    assert net(torch.randn(2, 16, *grid)).shape == (2, 3, height, width)


def test_widths_of_the_papers_decoder():
    encoder = PatchNet()
    encoder.stride, encoder.dim = 16, 384
    net = Decoder(encoder, 256)
    assert [b[0].out_channels for b in net.blocks] == [256, 128, 64, 32]
    assert 1e6 < sum(p.numel() for p in net.parameters()) < 2e6


def test_restoring_the_whole_view_costs_nothing_and_a_constant_its_distance():
    task, batch = mst(restore_weight=2.0), batch_for("mst")
    whole = torch.cat(batch.images[:2])
    alone = copy.deepcopy(task)
    task.decoder.forward = lambda x: whole
    step = task(batch, CLOCK)
    assert step.logs["restore_loss"] == 0
    alone.decoder.forward = lambda x: whole + 0.5
    other = alone(batch, CLOCK)
    assert other.logs["restore_loss"].item() == pytest.approx(0.5, rel=1e-5)
    assert (other.loss - step.loss).item() == pytest.approx(1.0, rel=1e-4)


def test_the_decoder_sees_patches_in_raster_order_without_the_front():
    task, seen = mst(masking="none"), []
    task.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = batch_for("mst")
    task(batch, CLOCK)
    torch.testing.assert_close(seen[0], task.encoder.features(torch.cat(batch.images[:2])))


def test_restoration_trains_encoder_and_decoder_but_neither_head_nor_teacher():
    task = mst(num=1, masked_share=0.5)
    batch = batch_for("mst")
    restored = []
    task.decoder.register_forward_hook(lambda _, inputs, out: restored.append(out))
    task(batch, CLOCK)
    restored[0].abs().mean().backward()
    assert all(p.grad is not None for p in task.decoder.parameters())
    assert task.encoder.embed.weight.grad.abs().sum() > 0
    assert task.mask_token.grad.abs().sum() > 0
    for frozen in (task.head, task.teacher, task.teacher_head):
        assert all(p.grad is None for p in frozen.parameters())


def test_the_teacher_averages_what_it_shares_and_is_kept():
    net = PatchNet()
    net.extra = DropPath(0.5)
    task = mst(net, momentum=0.5)
    assert task.kept() is task.teacher.module
    assert task.kept().extra.drop_prob == 0
    with torch.no_grad():
        start = copy.deepcopy(task.encoder.embed.weight)
        task.encoder.embed.weight += 1
    task.after_update(Clock(5, 10, 5))  # halfway: .75
    torch.testing.assert_close(task.teacher.module.embed.weight, start + 0.25)


def test_what_is_kept_has_the_keys_of_dinos_files():
    encoder = create(BackboneConfig(name="vit_nano_patch8_64", image_size=32))
    names = {re.sub(r"\.\d\.", ".i.", k) for k in mst(encoder).kept().net.state_dict()}
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    each = ("patch_embed.proj", *(f"blocks.i.{layer}" for layer in layers), "norm")
    assert names == {"cls_token", "pos_embed"} | {f"{k}.{w}" for k in each for w in WEIGHTS}


def test_the_last_layer_stays_through_its_frozen_epoch():
    task = mst(freeze_last_layer=1)
    start = copy.deepcopy(task.head.prototypes)
    train(task, [batch_for("mst", i) for i in range(2)])
    assert torch.equal(task.head.prototypes, start)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"method\.views: MST needs 2 global crops, not 1"):
        mst(views=(View(),))
    with pytest.raises(ValueError, match=r"method\.num: 0 divides the patches"):
        mst(num=0)
    net = PatchNet()
    net.prefix = 0
    with pytest.raises(ValueError, match="needs a CLS token"):
        mst(net)
    odd = PatchNet()
    odd.stride = 14
    with pytest.raises(ValueError, match="cells of 14 pixels"):
        mst(odd)


def test_patches_that_recipes_mask_in_a_view():
    for name, patches, masked in (("paper", 196, 3.6), ("small", 64, 4.8)):
        cfg = RECIPES[name].method
        assert patches // cfg.num * cfg.masked_share == pytest.approx(masked)


def swin(size=64, **settings):
    torch.manual_seed(0)
    cfg = BackboneConfig(name="swin_pico_patch4_window4_64", image_size=size)
    return mst(create(cfg), **settings)


def pictures(b=2, seed=0, size=64, small=32):
    g = torch.Generator().manual_seed(seed)
    sizes = (size, size, small, small)
    images = [torch.randn(b, 3, s, s, generator=g) for s in sizes]
    index = torch.arange(b)
    return Views(images=images, index=index, key=random.keys(0, seed, index))


def test_a_swin_without_masks_and_restoration_is_dino_to_the_bit():
    from saccade import methods

    dino = methods.get("dino")
    torch.manual_seed(0)
    net = create(BackboneConfig(name="swin_pico_patch4_window4_64", image_size=64))
    torch.manual_seed(0)
    one = dino(dino.Config(hidden=16, bottleneck=8, prototypes=12, freeze_last_layer=0), net)
    two = swin(masking="none", restore_weight=0.0, freeze_last_layer=0)
    batches = [pictures(seed=i) for i in range(2)]
    assert train(one, batches) == pytest.approx(train(two, batches), rel=1e-5)  # fused attention


def test_a_swin_loses_whole_cells_of_its_last_map_those_that_get_the_least_attention():
    task = swin(size=128, num=2, masked_share=1.0).train()
    batch, seen = pictures(size=128, small=64), []
    task.encoder.net.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    task(batch, CLOCK)
    hidden = (seen[0] == task.mask_token).all(-1)  # [4, 32, 32] patches of 4 pixels
    cells = hidden.unflatten(2, (4, 8)).unflatten(1, (4, 8)).float().mean((2, 4))
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert cells.sum((1, 2)).tolist() == [8.0] * 4
    net = task.teacher.module
    for x, chosen in zip(torch.cat(batch.images[:2]), cells.flatten(1).bool(), strict=True):
        points = [((i + 0.5) / 4, (j + 0.5) / 4) for j in range(4) for i in range(4)]
        last = microscope.look(net, x[None], points)[-1]
        attention = last.maps.mean((0, 1)).flatten()  # over heads and queries
        assert attention[chosen].max() <= attention[~chosen].min() + 1e-6


def test_a_masked_swin_learns_to_restore_and_its_mask_token_with_it():
    task = swin(num=1, masked_share=0.5, restore_weight=5.0, freeze_last_layer=0)
    before = task.mask_token.detach().clone()
    losses = train(task, [pictures()] * 12)
    assert losses[-1] < losses[0]
    assert not torch.equal(task.mask_token, before)
    drawn = task.eval().draw(pictures())
    assert drawn["seen"].isnan().any()
    assert drawn["restored"].shape == (2, 3, 64, 64)


def test_networks_without_attention_are_refused():
    net = create(BackboneConfig(name="resnet10_w16", image_size=32))
    with pytest.raises(ValueError, match="needs a CLS token or a Swin"):
        mst(net)
    with pytest.raises(ValueError, match="attention is asked for"):
        net.encode_and_look(net.stem(torch.zeros(1, 3, 32, 32)))
