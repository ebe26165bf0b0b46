from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade import backbones
from saccade.evals import finetune
from saccade.evals.features import Data
from saccade.evals.finetune import PROTOCOLS, build, drop_paths, groups, rates, run
from saccade.recipe import BackboneConfig, Normalize


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return backbones.create(BackboneConfig(name="vit_pico_patch8_32", image_size=16))


def data(model, toy, **more):
    return Data(model, toy(60), toy(15, seed=1), normalize=Normalize(), **more)


def test_layer_decay_is_mae_s(vit):
    """n = depth + 1; positions, CLS and patches have id 0, block i has i + 1, the rest n."""
    cfg = PROTOCOLS["finetune-mae"]
    model = build(cfg, vit, 3)
    found = {id(p): g for g in groups(cfg, model) for p in g["params"]}
    names = {n for n, _ in model.named_parameters()}
    assert not any(n.startswith("backbone.net.norm.") for n in names)  # dropped
    assert {"norm.weight", "norm.bias"} <= names  # and a new one
    for name, p in model.named_parameters():
        inside = name.removeprefix("backbone.net.")
        number = 7
        if inside.startswith(("cls_token", "pos_embed", "patch_embed")):
            number = 0
        elif inside.startswith("blocks."):
            number = int(inside.split(".")[1]) + 1
        group = found[id(p)]
        assert group["lr_scale"] == pytest.approx(0.65 ** (7 - number)), name
        flat = p.ndim == 1 or inside in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0.0 if flat else 0.05), name
    assert len(found) == len(list(model.parameters()))


def test_drop_path_grows_with_depth_and_the_given_network_stays(vit):
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    model = build(PROTOCOLS["finetune-dino"], vit, 3)
    drops = [model.backbone.net.blocks[i].drop_path2.drop_prob for i in range(6)]
    assert drops == pytest.approx([0.1 * i / 5 for i in range(6)])
    assert all(type(b.drop_path1) is torch.nn.Identity for b in vit.net.blocks)
    assert all(torch.equal(v, before[k]) for k, v in vit.state_dict().items())


def test_drop_path_of_a_swin_follows_its_depth():
    net = backbones.create(BackboneConfig(name="swin_pico_patch4_window4_64", image_size=64))
    drop_paths(net, 0.2)
    found = [b.drop_path2.drop_prob for stage in net.net.layers for b in stage.blocks]
    assert found == pytest.approx([0.2 * i / 4 for i in range(5)])


def test_semi_supervised_rates_are_swavs():
    """Trunk .02, head 5, x .2 after epochs 12 and 16 of 20."""
    cfg = PROTOCOLS["semi-1"]
    model = build(cfg, backbones.create(BackboneConfig(name="resnet10_w16", image_size=16)), 3)
    optimizer = torch.optim.SGD(groups(cfg, model), lr=0.0)
    seen = []
    for epoch in (0, 11, 12, 15, 16, 19):
        rates(cfg, optimizer, 256, epoch * 5 + 4, 100, 5)
        by_head = {g["head"]: g["lr"] for g in optimizer.param_groups}
        seen.append((by_head[False], by_head[True]))
    shares = [1, 1, 0.2, 0.2, 0.04, 0.04]
    assert [v for pair in seen for v in pair] == pytest.approx(
        [v for s in shares for v in (0.02 * s, 5 * s)]
    )


def test_rates_of_adamw_warm_up_and_end_at_the_papers_floor():
    cfg = PROTOCOLS["finetune-mae"]
    net = backbones.create(BackboneConfig(name="resnet10_w16", image_size=16))
    optimizer = torch.optim.AdamW(groups(replace(cfg, layer_decay=1.0), build(cfg, net, 3)), lr=0.0)
    seen = []
    for step in (0, 25, 50, 999):
        rates(cfg, optimizer, 1024, step, 1000, 10)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0, 1e-3, 2e-3, 1e-6], abs=2e-8)


@pytest.mark.parametrize("protocol", ["finetune-mae", "finetune-moco", "semi-10"])
def test_it_repeats_and_leaves_the_global_generators(vit, toy, protocol):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second = (next(run(protocol, data(vit, toy, seed=2, epochs=1))) for _ in range(2))
    assert first.settings["epochs"] == 1
    assert first.values.tolist() == second.values.tolist()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_all_labels_teach_what_one_label_a_class_does_not(toy):
    torch.manual_seed(0)
    net = backbones.create(BackboneConfig(name="resnet10_w16", image_size=16))
    finest = replace(PROTOCOLS["semi-10"], share=1.0, batch_size=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(finetune.PROTOCOLS, "semi-10", finest)
        (score,) = run("semi-10", data(net, toy, epochs=6))
    assert score.settings["labels"] == 60
    assert score.values.mean() > 0.8


def test_the_labels_used_are_named_in_a_file(vit, toy, tmp_path):
    given = data(vit, toy, epochs=1, lists=tmp_path, seed=3)
    (score,) = run("semi-10", given)
    lines = (tmp_path / "semi-10-seed3.txt").read_text().splitlines()
    assert len(lines) == score.settings["labels"] == 6
    assert sorted(line.split("\t")[1] for line in lines) == ["a", "a", "b", "b", "c", "c"]
    for line in lines:
        name, label = line.split("\t")
        assert given.train.classes[int(name.removesuffix(".png")) % 3] == label


def test_sizes_of_mae_have_their_own_rates():
    large, huge = (PROTOCOLS[f"finetune-mae-{size}"] for size in "lh")
    assert [(p.epochs, p.layer_decay, p.optim.lr) for p in (large, huge)] == [(50, 0.75, 1e-3)] * 2
    assert (large.drop_path, huge.drop_path) == (0.2, 0.3)


def test_papers_that_augment_more_draw_randaugment(vit, toy):
    """rand-m9-mstd0.5-inc1 of timm: two operations of the increasing set, each with chance .5."""
    given = data(vit, toy)
    strong = finetune.view(PROTOCOLS["finetune-mae"], given).strong
    assert (strong.name, strong.count, strong.chance) == ("increasing", 2, 0.5)
    assert (strong.magnitude, strong.deviation) == (9, 0.5)
    assert finetune.view(PROTOCOLS["semi-1"], given).strong.name == "none"


@pytest.mark.parametrize("name", ["vit_pico_patch4_gap_32", "beit_pico_shared_patch4_32"])
def test_mean_patches_go_through_the_new_norm_alone(name):
    net = backbones.create(BackboneConfig(name=name, image_size=32)).eval()
    model = build(PROTOCOLS["finetune-mae"], net, 3).eval()
    x = torch.randn(2, 3, 32, 32)
    y = net.net.forward_intermediates(x, norm=False, intermediates_only=True)[-1]
    want = torch.nn.functional.layer_norm(y.mean((2, 3)), (96,), eps=1e-6)
    torch.testing.assert_close(model.norm(model.backbone.features(x).mean((2, 3))), want)


def test_tables_of_distances_do_not_decay():
    """As in SimMIM's and BEiT's fine-tuning; their layer is that of their block."""
    net = backbones.create(BackboneConfig(name="swin_pico_patch4_window4_64", image_size=64))
    model = build(PROTOCOLS["finetune-mae"], net, 3)
    found = {id(p): g for g in groups(PROTOCOLS["finetune-mae"], model) for p in g["params"]}
    tables = [p for n, p in model.named_parameters() if n.endswith("bias_table")]
    assert len(tables) == 5
    assert all(found[id(p)]["weight_decay"] == 0 for p in tables)
    assert found[id(tables[0])]["lr_scale"] < found[id(tables[4])]["lr_scale"]


def test_published_settings():
    mae, dino, moco = (PROTOCOLS[f"finetune-{n}"] for n in ("mae", "dino", "moco"))
    assert (mae.epochs, dino.epochs, moco.epochs) == (100, 300, 150)
    assert [p.optim.lr_rule for p in (mae, dino, moco)] == [
        "linear-256",
        "linear-512",
        "linear-512",
    ]
    assert (PROTOCOLS["semi-1"].share, PROTOCOLS["semi-10"].head_lr) == (0.01, 0.2)
