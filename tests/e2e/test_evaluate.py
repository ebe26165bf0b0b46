"""`saccade evaluate` as users meet it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import saccade

from saccade import weights
from saccade.backbones.timm_state import timm_state


@pytest.fixture
def pictures(tmp_path):
    """120 training and 40 test pictures of two classes, dark and bright."""
    g = np.random.default_rng(0)
    y, yt = np.arange(120) % 2, np.arange(40) % 2
    x, xt = (g.integers(0, 200, (len(t), 32, 32, 3)) + 50 * t[:, None, None, None] for t in (y, yt))
    np.savez(
        tmp_path / "pictures.npz",
        x=x.astype(np.uint8),
        y=y.astype(np.uint8),
        xt=xt.astype(np.uint8),
        yt=yt.astype(np.uint8),
    )
    return tmp_path / "pictures.npz"


@pytest.fixture
def dino(tmp_path):
    """A checkpoint as DINO's script leaves it, student and teacher."""
    parts = {}
    for seed, (name, front) in enumerate(
        (("student", "module.backbone."), ("teacher", "backbone."))
    ):
        net = weights.load("random:vit_nano_patch4_32", seed=seed).backbone
        parts[name] = {front + k: v for k, v in timm_state(net).items()}
        parts[name][front.replace("backbone", "head") + "mlp.0.weight"] = torch.zeros(1)
    torch.save(parts, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def test_a_foreign_checkpoint_with_baselines_a_comparison_and_a_plot(
    dino, pictures, tmp_path, capsys
):
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    other = "random:resnet10_w16"
    args = ["evaluate", dino, "--data", pictures, "--compare", other, "--json", out]
    args += ["--plot", plot, "--protocol", "knn-dino,retrieval"]
    assert saccade(*args) == 0
    said = capsys.readouterr().err
    assert "DINO layout, part teacher (also there: student), vit_nano_patch4_32" in said
    assert "78 keys matched; 0 missing; 1 unexpected: head.mlp.0.weight" in said
    found = json.loads(out.read_text())
    models = {r["model"] for r in found["results"]}
    trivial = {"chance", "color-histogram", "hog"}
    assert models == {str(dino), other, "random weights"} | trivial
    compared = {(c["model"], c["metric"]) for c in found["comparisons"]}
    assert compared >= {(other, "top1@20"), (other, "mAP"), ("random weights", "mAP")}
    assert all(c["low"] <= c["difference"] <= c["high"] for c in found["comparisons"])
    with Image.open(plot) as drawn:
        assert drawn.width == 860


def test_the_student_is_taken_where_asked_for(dino, pictures, capsys):
    args = ["evaluate", dino, "--data", pictures, "--no-baselines", "--json", "-"]
    assert saccade(*args, "--part", "student") == 0
    assert "part student (also there: teacher)" in capsys.readouterr().err
    assert saccade(*args, "--part", "pupil") == 2
    assert "choose from teacher, student" in capsys.readouterr().err


def test_features_are_kept_and_baselines_remembered(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "remembered"))
    run = tmp_path / "net"
    loaded = weights.load("random:resnet10_w16", seed=3)
    weights.save_backbone(run, loaded.backbone, loaded.config, loaded.normalize, {})
    args = ["evaluate", run, "--data", pictures, "--cache", tmp_path / "cache", "--json", "-"]
    outputs = []
    for _ in range(2):
        assert saccade(*args) == 0
        outputs.append(json.loads(capsys.readouterr().out))
        kept = sorted(p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir())
        remembered = sorted(p.stat().st_mtime_ns for p in (tmp_path / "remembered").rglob("*.json"))
        outputs[-1]["files"] = kept, remembered
    assert outputs[0] == outputs[1]
    assert [len(f) for f in outputs[0]["files"]] == [4, 2]


def test_few_labels_are_named_beside_the_json(pictures, tmp_path):
    out = tmp_path / "figures" / "out.json"
    args = ["evaluate", "random:resnet10_w16", "--data", pictures, "--json", out]
    assert saccade(*args, "--protocol", "semi-10", "--epochs", "1", "--seed", "2") == 0
    assert len((out.parent / "labels" / "semi-10-seed2.txt").read_text().splitlines()) == 12


def test_label_free_runs_on_pictures_alone(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    args = ["evaluate", "random:resnet10_w16", "--data", tmp_path / "photos", "--json", "-"]
    assert saccade(*args, "--protocol", "label-free") == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["metric"] for r in results] == [
        *("RankMe", "alpha-ReQ", "uniformity", "LiDAR", "alignment"),
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "3"], "epochs=3: knn-dino does not read it"),
        (["--part", "teacher"], "holds one backbone"),
        (["--protocol", "knn-dino,linear-dinov3"], "did you mean linear-dinov2"),
    ],
)
def test_a_mistake_is_one_line(more, message, pictures, capsys):
    assert saccade("evaluate", "random:resnet10_w16", "--data", pictures, *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
