"""Studies: every one of them can be run, and the judgment is arithmetic on its figures."""

import json

import numpy as np
import pytest

from saccade import cli, reproduction, studies
from saccade import run as runs


def saccade(*args):
    return cli.guarded(lambda: cli.app([str(a) for a in args], standalone_mode=False))


@pytest.mark.parametrize("name", studies.names())
def test_every_arm_of_every_study_is_a_run(name):
    study = studies.get(name)
    arms = [a.name for a in study.arms]
    assert len(set(arms)) == len(arms) >= 2
    assert {n for pair in study.order for n in pair} <= set(arms)
    published = {a.name: a.published for a in study.arms}
    for better, worse in study.order:  # the paper's own figures have that order
        assert published[better] > published[worse]
    for arm in study.arms:
        flags = {"backbone.name": arm.backbone, "batch_size": arm.batch_size}
        runs.assemble(
            method=arm.method,
            recipe="small",
            config=None,
            out=None,
            flags=flags,
            sets=[*study.common, *arm.sets],
        )


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
        study, rows(a=[0.5, 0.3, 0.4], b=[0.4, 0.2, 0.3], c=[0.9, 0.2, 0.25])
    )
    assert [o.verdict for o in found.orders] == ["holds", "not shown", "not shown"]
    assert found.orders[0].difference.value == pytest.approx(0.1)
    assert found.orders[0].published == pytest.approx(0.1)
    assert found.sentence == "Of 3 orderings of the paper: 1 holds, 2 not shown."
    swapped = reproduction.judge(study, rows(a=[0.2, 0.1], b=[0.3, 0.2], c=[0.1, 0.0]))
    assert [o.verdict for o in swapped.orders] == ["reversed", "holds", "holds"]


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
