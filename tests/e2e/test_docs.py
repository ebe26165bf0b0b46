"""Every `saccade` command in the README and the docs runs, in the small."""

import re
import shlex
import tarfile
from pathlib import Path

import boxes
import masks
import numpy as np
import pytest
from PIL import Image
from terminal import saccade

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
SMALL = ["--steps", "2", "--batch-size", "4", "--set", "engine.knn_every=0"]
VIEWS = ["backbone.image_size=64", "method.views.0.size=64", "method.views.1.size=64"]
CONVOLUTIONS = ["--backbone", "resnet10_w16"]
WIDTHS = {  # of a method in a recipe
    ("dino", "small"): [*CONVOLUTIONS, "--set", "method.prototypes=64"],
    ("dino", ""): [
        *("--backbone", "vit_tiny_patch16_224", "--set", "method.prototypes=64"),
        *(word for v in [*VIEWS, "method.views.2.size=32"] for word in ("--set", v)),
    ],
    ("pixpro", "pyramid"): [*CONVOLUTIONS, *(word for v in VIEWS for word in ("--set", v))],
    ("simclr", "small"): CONVOLUTIONS,
    ("simclr_v2", "small"): CONVOLUTIONS,
}
DETECT = [
    *("--workers", "1", "--set", "system.hidden=16", "--set", "system.regions=8"),
    *("--set", "system.framing.short=[48]", "--set", "system.framing.test_short=48"),
    *("--set", "system.framing.longest=64"),
]


def commands(path):
    """Arguments of each `saccade` command in a file's shell blocks, in order."""
    lines = "".join(BLOCK.findall(path.read_text())).splitlines()
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(p)[1:] for p in parts if shlex.split(p)[0].endswith("saccade")]


def value(args, option):
    return args[args.index(option) + 1] if option in args else ""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder as the docs assume it: photos, labelled pictures with two classes, and shards."""
    g = np.random.default_rng(0)
    for folder in ("photos", *(f"labelled/{s}/{c}" for s in ("train", "test") for c in "ab")):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(12):
            x = g.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(x).save(tmp_path / folder / f"{i}.png")
    for k in range(3):
        with tarfile.open(tmp_path / f"shards-{k:06d}.tar", "w") as tar:
            for i in range(4):
                tar.add(tmp_path / "photos" / f"{4 * k + i}.png", f"{4 * k + i}.png")
    (tmp_path / "bands").mkdir()
    for i in range(12):
        np.save(tmp_path / "bands" / f"{i}.npy", g.normal(size=(5, 32, 32)))
    x, y = g.integers(0, 256, (128, 32, 32, 3), dtype=np.uint8), np.arange(128, dtype=np.uint8) % 2
    np.savez(tmp_path / "small.npz", x=x, y=y, xt=x[:32], yt=y[:32])
    splits = {"train": masks.draw(6, 0), "val": masks.draw(2, 1)}
    masks.folders(tmp_path / "streets", splits)
    boxes.voc(tmp_path / "animals", {"train": boxes.draw(4), "val": boxes.draw(2, 1)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/guide.md",
        "docs/doctor.md",
        "docs/bands.md",
        "docs/data.md",
        "docs/few-labels.md",
        "docs/segmentation.md",
        "docs/igpt.md",
        "docs/look.md",
        "docs/masks.md",
        "docs/report.md",
        "docs/studies.md",
        "docs/teachers.md",
    ],
)
def test_every_command_runs(name, desk, monkeypatch):
    monkeypatch.setattr("saccade.planning.STEPS", 2)
    found = commands(ROOT / name)
    assert len(found) >= 2
    for args in found:
        if args[0] in ("pretrain", "plan") and "--method" in args:
            kind = value(args, "--method"), value(args, "--recipe")
            args = [*args, *SMALL, *WIDTHS.get(kind, [])]
        if args[0] == "train":
            args = [*args, "--steps", "2", "--batch-size", "4"]
        if args[:2] == ["train", "detect"]:
            args = [*args, *DETECT]
        if args[:2] in (["train", "classify"], ["train", "distill"]):
            args = [*args, *SMALL[:4]]
        code = saccade(*args)
        assert code == 0, " ".join(args)


def test_the_readme_says_how_to_run_the_tests():
    text = (ROOT / "README.md").read_text()
    block = text.split("<!-- test command -->")[1].split("```")[1]
    assert "pytest" in block
    assert ".[dev]" in block
