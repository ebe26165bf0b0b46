"""Studies: every one of them can be run, and the judgment is arithmetic on its figures."""

import json

import masks
import numpy as np
import pytest
import torch
from terminal import saccade
from torch.utils.flop_counter import FlopCounterMode

from saccade import backbones, pretraining, reproduction, studies, study_runs
from saccade import run as runs
from saccade.attention import LocalRelation
from saccade.backbones.presets import PRESETS


@pytest.mark.parametrize("name", studies.names())
def test_every_arm_of_every_study_is_a_run(name):
    study = studies.get(name)
    arms = [a.name for a in study.arms]
    assert len(set(arms)) == len(arms) >= 2
    assert {n for pair in study.order for n in pair} <= set(arms)
    published = {a.name: a.published for a in study.arms}
    for better, worse in study.order:  # the paper's own figures have that order
        a, b = published[better], published[worse]
        assert a is None or b is None or a > b
    for arm in study.arms:
        assert bool(arm.method or arm.system) == (study.measure != "growth")
        assert bool(arm.system) == (study.measure in ("system", "degeneracy"))
        assert not arm.shared or arm.shared in arms
        asked = {"config": None, "out": None, "recipe": study.recipe}
        flags = {"backbone.name": arm.backbone, "batch_size": arm.batch_size}
        if arm.method:
            sets = [*study.common, *arm.sets]
            run = runs.assemble(method=arm.method, flags=flags, sets=sets, **asked)
            with torch.device("meta"):  # its settings fit the method and each other
                pretraining.build(pretraining.counted(run, 512))
        if arm.system:
            sets = [*study.system_common, *arm.system_sets]
            runs.assemble_train(system=arm.system, flags=flags, sets=sets, **asked)


def operations(study, arm):
    """Of the arm's network for one picture, in those of its own pixels."""
    run = runs.assemble_train(
        system=arm.system,
        recipe=study.recipe,
        config=None,
        out=None,
        flags={"backbone.name": arm.backbone, "batch_size": arm.batch_size},
        sets=[*study.system_common, *arm.system_sets],
    )
    net, unseen = backbones.create(run.backbone).eval(), []
    for layer in net.modules():
        if isinstance(layer, LocalRelation):  # torch does not see its sums over windows
            layer.register_forward_hook(
                lambda m, given, made: unseen.append(2 * m.kernel**2 * made.numel())
            )
    size = run.backbone.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() + sum(unseen)


@pytest.mark.parametrize("name", ["lr-net-vs-conv", "vit-vs-resnet-data"])
def test_arms_of_equal_operations_have_them(name):
    study = studies.get(name)
    first, *others = [operations(study, arm) for arm in study.arms]
    assert others == pytest.approx([first] * len(others), rel=0.05)


def test_necks_are_all_that_the_arms_of_fpt_differ_in():
    arms = studies.get("fpt-vs-fpn").arms
    assert {s.partition("=")[0] for arm in arms for s in arm.system_sets} == {"system.neck"}
    assert len({(a.backbone, a.batch_size, a.pictures) for a in arms}) == 1


def test_blocks_of_both_degenerating_networks_stand_in_the_same_units():
    study = studies.get("nl-degeneration")
    units = [PRESETS[a.backbone].layers["units"] for a in study.arms]
    assert all(u == units[0] for u in units)


def rows(**values):
    return [
        {"arm": a, "seed": s, "value": v, "control": 0.1}
        for a, own in values.items()
        for s, v in enumerate(own)
    ]


def test_orderings_are_paired_by_seed():
    arm = lambda n, p: studies.Arm(name=n, method="simclr", published=p)  # noqa: E731
    study = studies.Study(
        claim="c",
        source="s",
        figure="f",
        arms=(arm("a", 0.7), arm("b", 0.6), arm("c", 0.5)),
        order=(("a", "b"), ("b", "c"), ("a", "c")),
    )
    found = reproduction.judge(
        study, rows(a=[0.5, 0.3, 0.4], b=[0.4, 0.2, 0.3], c=[0.9, 0.2, 0.25]), {}
    )
    assert [o.verdict for o in found.orders] == ["holds", "not shown", "not shown"]
    assert found.orders[0].difference.value == pytest.approx(0.1)
    assert found.orders[0].published == pytest.approx(0.1)
    assert found.sentence == "Of 3 orderings of the paper: 1 holds, 2 not shown."
    swapped = reproduction.judge(study, rows(a=[0.2, 0.1], b=[0.3, 0.2], c=[0.1, 0.0]), {})
    assert [o.verdict for o in swapped.orders] == ["reversed", "holds", "holds"]
    assert swapped.sentence == "Of 3 orderings of the paper: 2 hold, 1 reversed."


@pytest.fixture
def small(tmp_path):
    """Forty training and twenty test pictures of two classes."""
    g = np.random.default_rng(0)
    arrays = {}
    for x, y, n in (("x", "y", 40), ("xt", "yt", 20)):
        arrays[y] = (np.arange(n) % 2).astype(np.uint8)
        noise = g.integers(0, 150, (n, 32, 32, 3)) + 100 * arrays[y][:, None, None, None]
        arrays[x] = noise.astype(np.uint8)
    np.savez(tmp_path / "small.npz", **arrays)
    return tmp_path / "small.npz"


@pytest.mark.slow
def test_a_study_runs_goes_on_and_says_what_holds(small, tmp_path, capsys, monkeypatch):
    tiny = studies.Study(
        claim="more learning rate, more learning",
        source="nobody",
        figure="none",
        arms=(
            studies.Arm(
                name="fast", method="simclr", published=0.6, backbone="resnet10_w16", batch_size=32
            ),
            studies.Arm(
                name="not finite",
                method="simclr",
                published=0.5,
                backbone="resnet10_w16",
                batch_size=32,
                sets=("optim.lr=1e30",),
            ),
        ),
        order=(("fast", "not finite"),),
        common=("backbone.stem=paper", "method.hidden=16", "optim.name=sgd"),
    )
    monkeypatch.setattr(studies, "get", lambda name: tiny)
    out = tmp_path / "study"
    args = ["reproduce", "tiny", "--data", small, "--out", out, "--seeds", "2"]
    args += ["--seen", "512", "--pictures", "40"]
    assert saccade(*args, "--plot", tmp_path / "p.png", "--set-nothing") == 2
    capsys.readouterr()
    assert saccade(*args, "--plot", tmp_path / "p.png") == 0
    said = capsys.readouterr().err
    assert "Of 1 orderings of the paper" in said
    assert (tmp_path / "p.png").stat().st_size > 2000
    rows = json.loads((out / "study.json").read_text())["runs"]
    assert len(rows) == 4
    stopped = [r for r in rows if r["arm"] == "not finite"]
    assert all("loss" in r["stopped"] and r["value"] == 0.5 for r in stopped)
    before = (out / "study.json").stat().st_mtime_ns
    assert saccade(*args) == 0  # nothing is run again
    assert (out / "study.json").stat().st_mtime_ns == before
    assert saccade(*args[:-1], "30") == 2
    assert "holds a study with" in capsys.readouterr().err


def arm(name, **fields):
    return studies.Arm(name=name, batch_size=16, **fields)


def tiny(monkeypatch, *arms, **fields):
    study = studies.Study(claim="c", source="s", figure="f", arms=arms, **fields)
    monkeypatch.setattr(studies, "get", lambda name: study)
    return study


STEM = ("backbone.stem=paper", "engine.log_every=50")


@pytest.mark.slow
def test_labels_alone_are_a_study_and_so_is_what_attention_has_become(small, tmp_path, monkeypatch):
    arms = [
        arm("wide", system="classify", backbone="nl_resnet10_w32", metric="attention"),
        arm("few", system="classify", backbone="dnl_resnet10_w32", metric="unary", pictures=16),
        arm(
            "common",
            system="classify",
            backbone="nl_resnet10_w32",
            metric="attention unary_share",
            shared="wide",
        ),
    ]
    common = {"system_common": STEM, "order": (("few", "wide"),)}
    tiny(monkeypatch, *arms, measure="degeneracy", **common)
    at = {"seeds": 2, "seen": 64, "pictures": 40}
    found = reproduction.reproduce("tiny", str(small), tmp_path / "a", **at)
    assert found.values["few"] == pytest.approx([1, 1], abs=1e-5)  # one map for all, by definition
    assert all(0.5 < v <= 1 + 1e-6 for v in found.values["wide"])  # hardly trained: near uniform
    assert all(0 < v < 1 for v in found.values["common"])
    assert found.controls["few"] == pytest.approx([1, 1], abs=1e-5)
    assert all(0 < v < 1 for v in found.controls["common"])
    assert found.controls["common"] != found.values["common"]
    rows = json.loads((tmp_path / "a" / "study.json").read_text())["runs"]
    counts = {r["arm"]: r["runs"]["train"]["system"]["labels"]["count"] for r in rows}
    assert counts == {"wide": 40, "few": 16, "common": 40}
    tiny(
        monkeypatch,
        arm("one", system="classify", backbone="resnet10_w16"),
        arm("same", system="classify", backbone="resnet10_w16", shared="one"),
        **(common | {"order": (("one", "same"),)}),
        measure="system",
        protocol="classify",
    )
    found = reproduction.reproduce("tiny", str(small), tmp_path / "b", **at)
    assert found.values["one"] == found.values["same"]
    assert found.sentence == "Of 1 orderings of the paper: 1 not shown."
    assert len(list((tmp_path / "b").glob("*-classify"))) == 2  # a shared run is run once a seed


@pytest.mark.slow
def test_a_method_is_carried_to_pixels_without_seeing_test_pictures(tmp_path, monkeypatch):
    data = masks.folders(tmp_path / "data", {"train": masks.draw(16, 0), "val": masks.draw(3, 1)})
    views = ("backbone.image_size=32", "method.views.0.size=32", "method.hidden=16", *STEM)
    cropping = ("system.cropping.short=40", "system.cropping.size=[32,32]", *STEM)
    tiny(
        monkeypatch,
        arm("pretrained", method="simclr", system="segment", backbone="resnet10_w16"),
        arm("scratch", system="segment", backbone="resnet10_w16"),
        order=(("pretrained", "scratch"),),
        common=views,
        system_common=cropping,
        measure="system",
        protocol="segmentation",
        metric="mIoU",
        seen=32,
        system_seen=64,
    )
    out = tmp_path / "out"
    found = reproduction.reproduce("tiny", str(data), out, seeds=2, precision="bf16")
    assert all(0 <= v <= 1 for values in found.values.values() for v in values)
    listed = (out / "pictures.txt").read_text().split()
    assert len(listed) == 16
    assert all("train" in path for path in listed)
    rows = {r["arm"]: r["runs"] for r in json.loads((out / "study.json").read_text())["runs"]}
    assert rows["pretrained"]["pretrain"]["steps"] == 2
    assert rows["pretrained"]["train"]["steps"] == 64 // rows["pretrained"]["train"]["batch_size"]
    assert list(rows["scratch"]) == ["train"]
    used = [r["engine"]["precision"] for row in rows.values() for r in row.values()]
    assert used == ["bf16"] * 3


def test_growth_needs_no_training_and_is_not_shown_as_points(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_runs, "SIZES", (12, 24))
    arms = [
        studies.Arm(name="pairs", mechanism="self-attention", published=2.0),
        studies.Arm(name="convolution", mechanism="convolution 3x3", published=1.0),
    ]
    order = (("pairs", "convolution"),)
    tiny(monkeypatch, *arms, order=order, measure="growth", metric="memory")
    args = ["reproduce", "tiny", "--out", tmp_path / "out", "--seeds", "2"]
    assert saccade(*args, "--plot", tmp_path / "p.png", "--json", "-") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["settings"]["study"] == "tiny"
    assert said["settings"]["seeds"] == 2
    assert {"date", "machine", "versions"} <= said.keys()
    assert said["orders"][0]["verdict"] == "holds"
    assert said["arms"]["convolution"]["ours"]["value"] == pytest.approx(1, abs=0.1)
    assert said["arms"]["pairs"]["ours"]["value"] > 1.5  # the map itself is linear
    assert said["arms"]["pairs"]["before"] is None
    assert saccade(*args) == 0
    table = capsys.readouterr().out
    assert "growth of memory" in table
    assert "points" not in table
