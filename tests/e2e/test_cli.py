"""The command line as users meet it. Commands run inside this process to spare imports."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from terminal import saccade

TINY = [
    *("--recipe", "small", "--backbone", "resnet10_w16", "--batch-size", "32"),
    *("--set", "method.hidden=32", "--set", "engine.log_every=2"),
]


@pytest.fixture
def pictures(tmp_path):
    """96 training and 32 test pictures of two classes, dark and bright."""
    g = np.random.default_rng(0)
    y, yt = g.integers(0, 2, 96), g.integers(0, 2, 32)
    draw = lambda y: g.integers(0, 64, (len(y), 32, 32, 3)) + 150 * y[:, None, None, None]  # noqa: E731
    path = tmp_path / "pictures.npz"
    x, xt = draw(y).astype(np.uint8), draw(yt).astype(np.uint8)
    np.savez(path, x=x, y=y.astype(np.uint8), xt=xt, yt=yt.astype(np.uint8))
    return path


def subprocess_saccade(*args):
    command = [sys.executable, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("args", [["--help"], ["list", "methods"]])
def test_help_and_list_import_no_torch(args):
    done = subprocess_saccade("-X", "importtime", "-m", "saccade", *args)
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"torch", "timm", "torchvision"}


def test_pretrain_measures_keeps_and_exports(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["pretrain", pictures, "--method", "simclr", *TINY, "--steps", 4, "--out", out]
    assert saccade(*args, "--set", "engine.track=tensorboard") == 0
    results = json.loads((out / "results.json").read_text())["results"]
    models = {r["model"] for r in results}
    assert {"chance", "color-histogram", "hog", "random weights", "after pretraining"} <= models
    assert all(r["n"] == 32 and r["low"] <= r["value"] <= r["high"] for r in results)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 3]
    events = EventAccumulator(str(out / "tensorboard")).Reload().Scalars("loss")
    told = [(e.step, pytest.approx(e.value)) for e in events]
    assert [(row["step"], row["loss"]) for row in rows] == told
    assert "health:" in capsys.readouterr().err

    found = tmp_path / "found.json"
    args = ["evaluate", out, "--data", pictures, "--protocol", "knn-dino", "--json", found]
    assert saccade(*args) == 0
    again = [r for r in json.loads(found.read_text())["results"] if r["metric"] == "top1@20"]
    trained = [r for r in results if r["model"] == "after pretraining"]
    assert again[0]["value"] == trained[0]["value"]

    table = tmp_path / "vectors.parquet"
    assert saccade("embed", out, "--data", pictures, "--out", table) == 0
    first, *_ = pq.read_table(table)["path"].to_pylist()
    capsys.readouterr()
    assert saccade("search", table, first, "--top", 3) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    target = tmp_path / "state.safetensors"
    args = ["export", out, "--format", "state-dict", "--out", target, "--data", pictures]
    assert saccade(*args) == 0
    assert target.is_file()


def test_run_json_runs_again_to_the_same_weights(pictures, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    args = ["pretrain", pictures, "--method", "simclr", *TINY, "--steps", 2]
    assert saccade(*args, "--out", a) == 0
    assert saccade("pretrain", "--config", a / "run.json", "--out", b) == 0
    assert (a / "run.json").read_text() == (b / "run.json").read_text()
    weights = [(x / "backbone" / "model.safetensors").read_bytes() for x in (a, b)]
    assert weights[0] == weights[1]


def test_a_step_is_compiled_where_that_is_asked_for(pictures, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda task: compiled.append(task) or task)
    args = ["pretrain", pictures, "--method", "simclr", *TINY, "--steps", 1]
    for words in ([], ["--compile"]):
        assert saccade(*args, *words, "--out", tmp_path / "run", "--overwrite") == 0
    assert [type(task).__name__ for task in compiled] == ["SimCLR"]
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert said["engine"]["compile"] is True


def test_what_masks_have_taught_is_measured_by_a_classifier_too(pictures, tmp_path):
    out = tmp_path / "run"
    args = ["pretrain", pictures, "--method", "mlm", "--recipe", "small", "--batch-size", 32]
    assert saccade(*args, "--backbone", "vit_pico_patch4_32", "--steps", 1, "--out", out) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    trained = {r["protocol"] for r in results if r["model"] == "after pretraining"}
    assert trained == {"knn-dino/1", "linear-dino/1"}


@pytest.fixture
def wrong(pictures, tmp_path):
    """Name of a mistake -> command line."""
    used, empty = tmp_path / "used", tmp_path / "empty"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    empty.mkdir()
    pickle = tmp_path / "unsafe.pth"
    torch.save({"state_dict": Unsafe()}, pickle)
    bare = tmp_path / "bare.npz"
    np.savez(bare, x=np.zeros((32, 32, 32, 3), np.uint8))
    other = tmp_path / "other.pth"
    torch.save({"layer": torch.zeros(3)}, other)
    run = ["pretrain", pictures, *TINY, "--steps", 1, "--out", tmp_path / "x"]
    good = [*run, "--method", "simclr"]
    return {
        "unknown method": [*run, "--method", "simclear"],
        "unknown recipe": [*good, "--recipe", "tiny"],
        "misspelt setting": [*good, "--set", "optim.learning_rat=1"],
        "wrong type": [*good, "--set", "optim.lr=fast"],
        "wrong flag value": [*good, "--epochs", "many"],
        "unknown flag": [*good, "--epoch", "3"],
        "unknown backbone": [*good, "--backbone", "resnet19"],
        "missing folder": ["pretrain", tmp_path / "nowhere", "--method", "simclr", "--out", "x"],
        "empty folder": ["pretrain", empty, "--method", "simclr", "--out", tmp_path / "x"],
        "non-empty out": [*good, "--out", used],
        "overwriting what is no run": [*good, "--out", used, "--overwrite"],
        "wrong checkpoint": ["evaluate", other, "--data", pictures],
        "unsafe pickle": ["evaluate", pickle, "--data", pictures],
        "missing weights": ["evaluate", tmp_path / "none.pth", "--data", pictures],
        "batch larger than data": [*good, "--batch-size", "4096"],
        "bad device": [*good, "--devices", "3"],
        "unknown protocol": [
            "evaluate",
            "random:resnet10_w16",
            "--data",
            pictures,
            "--protocol",
            "nkk",
        ],
        "unknown list": ["list", "method"],
        "no labels": ["pretrain", bare, *run[2:], "--method", "supcon"],
    }


class Unsafe:
    """What a pickle may carry: reading it would run code."""

    def __reduce__(self):
        return (print, ("ran",))


MISTAKES = {
    "unknown method": "did you mean simclr",
    "unknown recipe": "choose from",
    "misspelt setting": "optim.lr",
    "wrong type": "setting optim.lr: 'fast'",
    "wrong flag value": "--epochs",
    "unknown flag": "--epochs",
    "unknown backbone": "did you mean resnet18",
    "missing folder": "nowhere",
    "empty folder": "empty",
    "non-empty out": "--overwrite",
    "overwriting what is no run": "not a run",
    "wrong checkpoint": "other.pth",
    "unsafe pickle": "unsafe.pth",
    "missing weights": "none.pth",
    "batch larger than data": "batch_size",
    "bad device": "batch_size",  # 32 pictures do not divide over 3 ranks
    "unknown protocol": "nkk",
    "unknown list": "did you mean methods",
    "no labels": "supcon needs labels",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_2(wrong, mistake, capsys, tmp_path):
    capsys.readouterr()
    assert saccade(*wrong[mistake]) == 2
    said = capsys.readouterr()
    assert MISTAKES[mistake] in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert "ran" not in said.out
    assert (tmp_path / "used" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "x").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_exit_1(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["pretrain", pictures, "--method", "simclr", *TINY, "--steps", 9, "--out", out]
    assert saccade(*args, "--set", "optim.lr=1e30", "--set", "optim.lr_rule=none") == 1
    assert "not finite at step" in capsys.readouterr().err
