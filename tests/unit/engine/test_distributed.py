"""Ranks of one command: one that fails ends all, and speaks once."""

import subprocess
import sys

import numpy as np
import pytest
from terminal import saccade

from saccade.engine import distributed

FOREVER = "import time; time.sleep(600)"
SAYS = "import os, sys; r = os.environ['RANK']; print('rank', r, file=sys.stderr); sys.exit({})"


def started(*codes):
    return [subprocess.Popen([sys.executable, "-c", code]) for code in codes]


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        (("pass", "pass"), None),
        (("import sys; sys.exit(2)", "pass"), 0),
        ((FOREVER, "import sys; sys.exit(3)"), 1),
        (("import sys; sys.exit(3)", FOREVER), 0),
    ],
)
def test_a_rank_that_fails_ends_those_that_wait_for_it(monkeypatch, codes, first):
    monkeypatch.setattr(distributed, "GRACE", 0.5)
    ranks = started(*codes)
    assert distributed._ended(ranks) == first
    assert all(p.poll() is not None for p in ranks)


@pytest.mark.parametrize(
    ("code", "ended", "words"),
    [
        ("0", 0, ["rank 0"]),
        ("2", 2, ["rank 0"]),  # a wrong setting is said once
        ("int(r) * 3", 3, ["rank 0", "rank 1", "saccade: rank 1 failed:"]),
    ],
)
def test_the_exit_code_and_the_words_are_those_of_the_rank_that_failed(
    monkeypatch, capfd, code, ended, words
):
    popen, script = subprocess.Popen, [sys.executable, "-c", SAYS.format(code)]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kw: popen(script, **kw))
    assert distributed.launch(2, ["pretrain"]) == ended
    assert sorted(capfd.readouterr().err.splitlines()) == words


def test_ranks_meet_in_a_file_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    found = distributed._environment(2, 4, tmp_path)
    assert {k: found[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")} == {
        "RANK": "2",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "4",
        "OMP_NUM_THREADS": "3",
    }
    assert found[distributed.STORE].startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard"], "engine.shard=true has nothing to share with 1 device"),
        (["--shard", "--devices", "2", "--precision", "fp16"], "engine.shard=true: the loss scale"),
    ],
)
def test_what_cannot_be_shared_out_is_one_line(tmp_path, capfd, monkeypatch, words, said):
    pictures = tmp_path / "p.npz"
    np.savez(pictures, x=np.zeros((64, 32, 32, 3), np.uint8))
    args = ["pretrain", str(pictures), "--method", "simclr", "--recipe", "small", "--steps", "1"]
    args += ["--backbone", "resnet10_w16", "--batch-size", "32", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["saccade", *args, *words])
    assert saccade(*args, *words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert said in lines[0]
