"""Image GPT through the command line: pretrain, complete, draw, probe, fine-tune, export."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import saccade

from saccade import weights
from saccade.backbones import presets


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    g = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    made = {}
    for x, y, n in (("x", "y", 24), ("xt", "yt", 10)):
        made[y] = g.integers(0, 2, n).astype(np.uint8)
        made[x] = (g.integers(0, 99, (n, 8, 8, 3)) + 150 * made[y][:, None, None, None]).astype(
            "u1"
        )
    np.savez(folder / "pictures.npz", **made)
    Image.fromarray(made["xt"][0]).resize((20, 12)).save(folder / "one.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A network of a width and depth for tests, causal and not."""
    with pytest.MonkeyPatch.context() as patch:
        for end in ("", "_bert"):
            sizes = {"dim": 16, "depth": 2, "heads": 2, "causal": not end}
            own = presets.Own(family="igpt", image_size=8, sizes=sizes)
            patch.setitem(presets.OWN, f"igpt_toy{end}", own)
        yield


def pretrain(data, out, backbone):
    sizes = ("--set", "backbone.image_size=8", "--set", "method.views.0.size=8")
    args = ("--method", "igpt", "--recipe", "cpu", "--steps", 2, "--batch-size", 8)
    pictures = data / "pictures.npz"
    assert saccade("pretrain", pictures, *args, *sizes, "--backbone", backbone, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return pretrain(data, tmp_path_factory.mktemp("runs") / "run", "igpt_toy")


@pytest.fixture(scope="module")
def bert(data, tmp_path_factory):
    return pretrain(data, tmp_path_factory.mktemp("runs") / "bert", "igpt_toy_bert")


def test_the_palette_goes_with_the_weights(run):
    loaded = weights.load(run)
    assert loaded.backbone.fitted
    assert not weights.load(run / "initial").backbone.fitted
    assert loaded.config.layer == "middle"
    assert loaded.backbone.layer == 1
    again = weights.load(run / "backbone")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.backbone(x), loaded.backbone(x))


def test_resuming_ends_with_the_weights_of_the_run_never_stopped(data, run, tmp_path):
    """The palette, found at the first step, is not found again."""
    other = tmp_path / "run"
    pretrain(data, other, "igpt_toy")
    (other / "done.json").unlink()
    assert saccade("pretrain", "--resume", "--out", other) == 0
    files = [x / "backbone" / "model.safetensors" for x in (run, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_pictures_are_completed_from_their_top_half(data, run, tmp_path):
    out = tmp_path / "out"
    sets = ("--set", "samples=2", "--set", "limit=3", "--set", "top_k=5")
    assert saccade("predict", run, data / "pictures.npz", "--out", out, *sets) == 0
    told = json.loads((out / "completions.json").read_text())
    assert len(told["pictures"]) == 3
    assert told["settings"]["samples"] == 2
    assert all(p["given"] == 32 for p in told["pictures"])
    first, second = (pixels(out / f) for f in told["pictures"][0]["completions"])
    assert first.shape == (8, 8, 3)
    assert np.array_equal(first[:4], second[:4])
    assert not np.array_equal(first[4:], second[4:])
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width >= 1000


def test_the_same_seed_draws_the_same_and_one_file_is_enough(data, run, tmp_path):
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / name
        assert saccade("predict", run, data / "one.png", "--out", out, "--set", f"seed={seed}") == 0
        made.append((out / "sheet.png").read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_without_pictures_whole_ones_are_drawn(run, tmp_path):
    assert saccade("predict", run, "--out", tmp_path / "out", "--set", "samples=3") == 0
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 3


MISTAKES = {
    "keep=1": "setting keep: 1.0",
    "temperature=0": "setting temperature: 0.0",
    "samples=0": "setting samples: 0",
    "top_k=-1": "setting top_k: -1",
    "top-k=3": "did you mean top_k",
    "temperature=warm": "setting temperature: 'warm'",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_settings_are_told_in_one_line(mistake, run, tmp_path, capsys):
    assert saccade("predict", run, "--out", tmp_path / "out", "--set", mistake) == 2
    said = capsys.readouterr().err
    assert MISTAKES[mistake] in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_network_that_sees_all_draws_nothing(bert, tmp_path, capsys):
    assert saccade("predict", bert, "--out", tmp_path / "out") == 2
    assert "pixel by pixel" in capsys.readouterr().err


def test_layers_are_measured_and_joint_fine_tuning_runs(data, run, bert, tmp_path):
    for weights_ in (run, bert):
        file = tmp_path / "found.json"
        args = ("--protocol", "linear-igpt,finetune-igpt", "--epochs", 1, "--no-baselines")
        pictures = data / "pictures.npz"
        assert saccade("evaluate", weights_, "--data", pictures, *args, "--json", file) == 0
        found = [(r["protocol"], r["metric"]) for r in json.loads(file.read_text())["results"]]
        assert found[:2] == [("linear-igpt/1", "top1"), ("linear-igpt/1", "top1@0")]
        assert found[-1] == ("finetune-igpt/1", "top1")


@pytest.mark.parametrize(
    ("format", "name", "code", "said"),
    [
        ("hf", "hf", 0, "largest difference"),
        ("state-dict", "x.safetensors", 0, "largest difference"),
        ("timm", "timm", 2, "timm has no igpt_toy; use format state-dict or hf"),
        ("torchvision", "tv.safetensors", 2, "use format state-dict or hf"),
        ("onnx", "x.onnx", 2, "nearest color"),
    ],
)
def test_exports_prove_themselves_or_refuse(format, name, code, said, data, run, tmp_path, capsys):
    target = tmp_path / name
    args = ("--format", format, "--out", target, "--data", data / "pictures.npz")
    assert saccade("export", run, *args) == code
    assert said in capsys.readouterr().err


def test_transformers_has_no_network_that_sees_all(data, bert, tmp_path, capsys):
    args = ("--format", "hf", "--out", tmp_path / "hf", "--data", data / "pictures.npz")
    assert saccade("export", bert, *args) == 2
    assert "masks every ImageGPT" in capsys.readouterr().err
