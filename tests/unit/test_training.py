"""`saccade train`, in Python: resume, batch norm, what is taken over from pretraining."""

import dataclasses
import json
import shutil

import boxes
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saccade import run as runs
from saccade import stage, training
from saccade.core import Framing
from saccade.nn import norm


@pytest.fixture
def data(tmp_path):
    splits = {"train": boxes.draw(4, 0), "val": boxes.draw(3, 1)}
    return boxes.voc(tmp_path / "data", splits)


def small_run(data, *sets, **flags):
    run = runs.assemble_train(
        system="detect",
        recipe="small",
        config=None,
        out=None,
        flags={"data": str(data), "backbone.name": "resnet10_w16", **flags},
        sets=[
            *("steps=4", "batch_size=2", "system.width=16", "system.hidden=16"),
            *("system.anchors=[4,8,16,32,64]", "engine.workers=1", "engine.log_every=1", *sets),
        ],
    )
    framing = Framing(short=(40, 48), test_short=48, longest=64)
    return dataclasses.replace(run, system=dataclasses.replace(run.system, framing=framing))


def test_a_resumed_run_ends_in_the_same_bits(data, tmp_path):
    run = small_run(data, "engine.save_seconds=0", "engine.keep=9", "precise_steps=2")
    training.train(run, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "b" / training.STATE).unlink()
    training.train(run, tmp_path / "b", resume=True)
    a, b = (load_file(tmp_path / x / training.STATE) for x in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [(tmp_path / x / "metrics.jsonl").read_text().splitlines() for x in "ab"]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_the_run_keeps_its_class_names_and_says_what_it_left_out(data, tmp_path):
    (data / "Annotations" / "train_3.xml").write_text("<annotation>")
    training.train(small_run(data), tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["system"]["classes"] == list(boxes.CLASSES)
    bad = [json.loads(x) for x in (tmp_path / "run" / "bad_files.jsonl").read_text().splitlines()]
    assert [b["name"] for b in bad] == ["train_3.xml"]
    run, system = training.load(tmp_path / "run")
    assert run.system.classes == boxes.CLASSES
    assert not system.training
    results = training.measure(tmp_path / "run")
    assert {r.protocol for r in results} == {"coco-box/1", "voc07-box/1"}
    assert all(r.n == 3 for r in results)


def test_weights_bring_backbone_normalization_and_heads(data, tmp_path):
    first = small_run(data, "normalize.mean=[0.1,0.2,0.3]", "steps=1")
    training.train(first, tmp_path / "first")
    state = load_file(tmp_path / "first" / training.STATE)
    layers = {k: v for k, v in state.items() if k.startswith("neck.fpn.")}
    extra = {"neck.fpn.unknown.weight": torch.zeros(2)}
    save_file(layers | extra, tmp_path / "first" / stage.HEADS)
    run = runs.assemble_train(
        system="detect",
        recipe="small",
        config=None,
        out=None,
        flags={"data": str(data), "weights": str(tmp_path / "first")},
        sets=["system.width=16", "system.hidden=16", 'system.classes=["blue","red"]', "seed=5"],
    )
    assert run.backbone == first.backbone
    assert run.normalize == first.normalize
    built = training.build(run).state_dict()
    moved = [k for k in built if k.startswith(("encoder.", "neck."))]
    assert all(torch.equal(built[k], state[k]) for k in moved)
    fresh = "rpn.head.cls_logits.weight"
    assert not torch.equal(built[fresh], state[fresh])


def test_frozen_batch_norm_keeps_statistics_and_weights(data, tmp_path):
    run = small_run(data, "batch_norm=frozen", "system.batch_norm=false")
    fitted = dataclasses.replace(run, system=dataclasses.replace(run.system, classes=boxes.CLASSES))
    before = training.build(fitted).state_dict()
    training.train(run, tmp_path / "run")
    after = load_file(tmp_path / "run" / training.STATE)
    norms = [k for k in after if ".bn" in k or "downsample.1." in k]
    assert norms
    assert all(torch.equal(before[k], after[k]) for k in norms)
    assert not torch.equal(
        before["encoder.net.conv1.0.weight"], after["encoder.net.conv1.0.weight"]
    )


def test_precise_statistics_are_the_mean_over_batches():
    layer = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.BatchNorm2d(3))
    frozen = norm.freeze(nn.BatchNorm2d(3))
    module = nn.ModuleList([layer, frozen]).train()
    batches = [torch.randn(4, 3, 5, 5) * (i + 1) + i for i in range(3)]
    norm.remeasure(module, (layer(x) for x in batches))
    means = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0)
    torch.testing.assert_close(layer[0].running_mean, means)
    torch.testing.assert_close(layer[0].running_var, variances)
    assert layer[0].momentum == 0.1
    assert torch.equal(frozen.running_mean, torch.zeros(3))
    assert not frozen.weight.requires_grad
