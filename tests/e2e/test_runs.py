"""Runs in a rough world: kills, dirty folders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import dirty
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from terminal import on_two_ranks, saccade

ROOT = Path(__file__).parents[2]
SAME = ("step", "loss", "gradient_norm", "online_knn", "teacher_entropy")  # of a line of the log


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits():
    script = [sys.executable, ROOT / "benchmarks" / "kill.py", "--kills", "1", "--methods", "moco"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 identical" in done.stdout


@pytest.mark.slow
def test_a_run_that_shares_its_weights_out_ends_as_any_other_and_resumes_to_the_bit(
    tmp_path, monkeypatch
):
    pictures = tmp_path / "pictures.npz"
    g = np.random.default_rng(0)
    draw = lambda n: g.integers(0, 256, (n, 32, 32, 3), np.uint8)  # noqa: E731
    labels = [g.integers(0, 2, n).astype(np.uint8) for n in (64, 32)]
    np.savez(pictures, x=draw(64), y=labels[0], xt=draw(32), yt=labels[1])
    args = ["pretrain", pictures, "--method", "dino", "--recipe", "small"]
    args += ["--backbone", "vit_pico_patch8_32", "--batch-size", 16, "--steps", 5]
    for setting in (
        *("backbone.stem=auto", "method.prototypes=64", "optim.clip=0.3", "engine.keep=9"),
        *("engine.log_every=1", "engine.save_seconds=0", "engine.knn_every=1"),
    ):
        args += ["--set", setting]
    plain, shared = tmp_path / "plain", tmp_path / "shared"
    assert saccade(*args, "--out", plain) == 0
    two = [*args, "--out", shared, "--shard"]
    assert on_two_ranks(monkeypatch, *two) == 0
    ended = weights(shared)
    for name, value in weights(plain).items():
        torch.testing.assert_close(ended[name], value, atol=1e-5, rtol=1e-4)
    logs = [rows(out) for out in (plain, shared)]
    for one, other in zip(*logs, strict=True):
        figures = {k: v for k, v in one.items() if k in SAME}
        assert {k: other[k] for k in figures} == pytest.approx(figures, rel=1e-3)
    assert any("online_knn" in row for row in logs[1])

    saved = sorted((shared / "checkpoints").iterdir())
    assert len(saved) == 5
    lose(saved[2:], shared)
    assert on_two_ranks(monkeypatch, *two, "--resume") == 0
    assert all(torch.equal(v, ended[k]) for k, v in weights(shared).items())
    lose(saved[2:], shared)
    alone = ["--devices", 1, "--set", "engine.shard=false"]  # the files are those of any run
    assert saccade(*args, "--out", shared, *alone, "--resume") == 0
    for name, value in weights(shared).items():
        torch.testing.assert_close(ended[name], value, atol=1e-5, rtol=1e-4)


def lose(checkpoints, out):
    """As if the run had been killed before it wrote them."""
    for folder in (*checkpoints, out / "backbone"):
        shutil.rmtree(folder)


def weights(out):
    return load_file(out / "backbone" / "model.safetensors")


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_dirty_folder_trains_and_lists_exactly_the_unreadable(tmp_path, capsys):
    wanted = dirty.make(tmp_path / "photos")
    out = tmp_path / "run"
    args = ["pretrain", tmp_path / "photos", "--method", "simclr", "--recipe", "small"]
    args += ["--backbone", "resnet10_w16", "--batch-size", 32, "--steps", 3, "--out", out]
    assert saccade(*args) == 0
    assert "no labels, so nothing is measured" in capsys.readouterr().err
    lines = (out / "bad_files.jsonl").read_text().splitlines()
    found = {row["name"]: row["reason"] for row in map(json.loads, lines)}
    assert found.keys() == wanted.keys()
    assert all(wanted[name] in found[name] for name in wanted)
    assert (out / "done.json").is_file()
