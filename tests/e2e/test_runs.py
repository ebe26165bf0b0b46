"""Runs in a rough world: kills, dirty folders."""

import json
import subprocess
import sys
from pathlib import Path

import dirty
import pytest

from saccade import cli

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits():
    script = [sys.executable, ROOT / "benchmarks" / "kill.py", "--kills", "1", "--methods", "moco"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 identical" in done.stdout


def test_a_dirty_folder_trains_and_lists_exactly_the_unreadable(tmp_path):
    wanted = dirty.make(tmp_path / "photos")
    out = tmp_path / "run"
    args = ["pretrain", tmp_path / "photos", "--method", "simclr", "--recipe", "small"]
    args += ["--backbone", "resnet10_w16", "--batch-size", 32, "--steps", 3, "--out", out]
    assert cli.guarded(lambda: cli.app(list(map(str, args)), standalone_mode=False)) == 0
    lines = (out / "bad_files.jsonl").read_text().splitlines()
    found = {row["name"]: row["reason"] for row in map(json.loads, lines)}
    assert found.keys() == wanted.keys()
    assert all(wanted[name] in found[name] for name in wanted)
    assert (out / "done.json").is_file()
