"""What docs/attention.md shows runs: the Python as written, the commands in the small."""

import re
import shlex
from pathlib import Path

import boxes
import pytest
from terminal import saccade

TEXT = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
TRAIN = [
    *("--backbone", "resnet10_w16", "--steps", "1", "--batch-size", "2", "--workers", "1"),
    *("--set", "system.width=8", "--set", "system.hidden=16", "--set", "system.regions=8"),
    *("--set", "system.anchors=[4,8,16,32,64]", "--set", "system.framing.short=[48]"),
    *("--set", "system.framing.test_short=48", "--set", "system.framing.longest=64"),
]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_python_runs_as_written():
    (code,) = blocks("python")
    names = {}
    exec(code, names)
    assert names["classes"].shape == (2, 1000)
    assert names["features"].shape == (2, 256, 7, 7)
    assert names["related"].shape == (2, 256)


def test_the_table_names_every_class():
    from saccade import attention

    known = set(attention.__all__) - {"GlobalLambda", "LocalLambda"}
    assert set(re.findall(r"^\| `(\w+)`", TEXT, re.MULTILINE)) == known


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch):
    boxes.voc(tmp_path / "animals", {"train": boxes.draw(4), "val": boxes.draw(2, 1)})
    boxes.save(tmp_path / "photos", boxes.draw(6)[0])
    monkeypatch.chdir(tmp_path)
    small = {"train": TRAIN, "pretrain": ["--steps", "2", "--batch-size", "4"]}
    found = [shlex.split(line)[1:] for block in blocks("sh") for line in block.splitlines()]
    assert len(found) == 8
    for args in found:
        args = [*args, *small.get(args[0], [])]
        code = saccade(*args)
        assert code == 0, " ".join(args)
