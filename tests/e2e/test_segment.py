"""`saccade train segment` and `saccade predict` as users meet them."""

import json
import os
import tarfile
from pathlib import Path

import masks
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from terminal import on_two_ranks, saccade

from saccade.domains import segmentation

TINY = [
    *("--backbone", "resnet10_w16", "--batch-size", "2", "--workers", "1"),
    *("--set", "system.width=16", "--set", "system.cropping.short=0"),
    *("--set", "system.cropping.size=[32,32]", "--set", "engine.log_every=1"),
]


@pytest.fixture
def data(tmp_path):
    splits = {"train": masks.draw(6, 0), "val": masks.draw(3, 1)}
    return masks.folders(tmp_path / "data", splits)


def test_train_measures_predicts_and_resumes(data, tmp_path, capsys):
    out, again = tmp_path / "run", tmp_path / "again"
    assert saccade("train", "segment", data, *TINY, "--steps", 3, "--out", out) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    found = {r["metric"]: r for r in results}
    assert {"mIoU", "pixel accuracy", "class accuracy", "IoU water"} <= set(found)
    assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in results)
    assert {r["protocol"] for r in results} == {"segmentation/1"}
    assert saccade("train", "segment", data, "--out", out, "--resume") == 0
    assert json.loads((out / "results.json").read_text())["results"] == results
    assert saccade("train", "segment", data, "--config", out / "run.json", "--out", again) == 0
    state = "system.safetensors"
    assert (again / state).read_bytes() == (out / state).read_bytes()

    pictures, labels = data / "images" / "val", masks.draw(3, 1)[1]
    assert saccade("predict", out, pictures, "--out", tmp_path / "seen") == 0
    told = json.loads((tmp_path / "seen" / "predictions.json").read_text())
    assert told["classes"] == list(masks.CLASSES)
    seen = []
    for row in told["pictures"]:
        with Image.open(tmp_path / "seen" / row["mask"]) as mask:
            assert mask.mode == "P"
            assert mask.convert("RGB").getpixel((0, 0)) == tuple(
                told["colors"][mask.getpixel((0, 0))]
            )
            seen.append(np.array(mask))
        with Image.open(tmp_path / "seen" / row["drawn"]) as drawn:
            assert drawn.width == 56
            assert drawn.height > 40  # a legend below
        shares = [row["shares"].get(c, 0) for c in masks.CLASSES]
        assert shares == pytest.approx([(seen[-1] == k).mean() for k in range(3)])
    known = np.stack(labels) != masks.VOID
    theirs = jaccard_score(np.stack(labels)[known], np.stack(seen)[known], average="macro")
    assert found["mIoU"]["value"] == pytest.approx(theirs)

    (pictures / "1.png").write_bytes(b"broken")
    capsys.readouterr()
    assert saccade("predict", out, pictures, "--out", tmp_path / "rest") == 0
    assert "left out 1.png" in capsys.readouterr().err


def test_a_fine_tuned_backbone_is_weights_like_any_other(data, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert saccade("train", "segment", data, *TINY, "--steps", 1, "--out", first) == 0
    flags = [f for f in TINY if f not in ("--backbone", "resnet10_w16")]
    args = ["train", "segment", data, *flags, "--recipe", "small-linear", "--weights", first]
    assert saccade(*args, "--steps", 2, "--out", second) == 0
    files = [run / "backbone" / "model.safetensors" for run in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()  # frozen
    picture = data / "images" / "val" / "0.png"
    assert saccade("predict", second, picture, "--out", tmp_path / "one") == 0
    told = json.loads((tmp_path / "one" / "predictions.json").read_text())
    assert len(told["pictures"]) == 1


@pytest.mark.slow
def test_two_ranks_that_share_the_weights_out_give_the_loss_of_one(data, tmp_path, monkeypatch):
    args = ["train", "segment", data, *TINY, "--steps", 2, "--batch-size", 4, "--out"]
    assert saccade(*args, tmp_path / "1") == 0
    assert on_two_ranks(monkeypatch, *args, tmp_path / "2", "--shard") == 0
    losses = []
    for out in (tmp_path / "1", tmp_path / "2"):
        lines = (out / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
        assert (out / "results.json").is_file()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


MISTAKES = {
    "no list": ("add classes.txt", []),
    "wrong head": ("setr needs a plain ViT", ["--set", "system.head=setr"]),
    "misspelt": ("did you mean system.head", ["--set", "system.haed=fcn"]),
    "one picture for uper": (
        "needs 2 pictures a device",
        ["--set", "system.head=uper", "--batch-size", "1"],
    ),
    "large batch": ("batch_size=64", ["--batch-size", "64"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_2(data, tmp_path, mistake, capsys):
    words, flags = MISTAKES[mistake]
    if mistake == "no list":
        (data / "classes.txt").unlink()
    args = ["train", "segment", data, *TINY, "--set", "system.dilated=0", "--steps", 1, *flags]
    capsys.readouterr()
    assert saccade(*args, "--out", tmp_path / "x") == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert words in told


def test_classes_have_colors_told_apart_and_a_legend():
    colors = segmentation.palette(21)
    assert len({tuple(c) for c in colors.tolist()}) == 21
    labels = np.zeros((30, 90), np.uint8)
    labels[:, 60:] = 2
    shares = np.array([2 / 3, 0, 1 / 3])
    pixels = torch.full((3, 30, 90), 255, dtype=torch.uint8)
    shown = segmentation.drawn(pixels, labels, ("a", "b", "c"), shares)
    array = np.array(shown).astype(int)
    blend = 255 + segmentation.SHADE * (colors[[0, 2]].astype(float) - 255)
    np.testing.assert_allclose(array[10, [5, 80]], blend, atol=1)
    legend = {tuple(c) for c in array[30:].reshape(-1, 3).tolist()}
    assert tuple(colors[0].tolist()) in legend
    assert tuple(colors[2].tolist()) in legend
    assert tuple(colors[1].tolist()) not in legend


@pytest.mark.parametrize("pixels", [torch.rand(5, 8, 9), torch.rand(3, 8, 9) - 2])
def test_bands_are_shown_as_their_mean(pixels):
    shown = np.array(segmentation.visible(pixels))
    gray = pixels.mean(0)
    want = (gray - gray.min()) / (gray.max() - gray.min()) * 255
    np.testing.assert_allclose(shown[..., 0], want, atol=1)


@pytest.mark.slow
def test_street_pictures_of_camvid(tmp_path):
    shared = Path(os.environ.get("SACCADE_DATA", "")) / "camvid" / "camvid.tar"
    if not shared.is_file():
        pytest.skip("SACCADE_DATA has no camvid")
    wanted = {"train": 8, "trainannot": 8, "test": 3, "testannot": 3}
    with tarfile.open(shared) as tar:
        for one in sorted(tar.getmembers(), key=lambda m: m.name):
            folder = Path(one.name).parent.name
            if one.isfile() and wanted.get(folder, 0):
                wanted[folder] -= 1
                target = tmp_path / "camvid" / folder / Path(one.name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(one).read())
    flags = [*TINY, "--batch-size", "4", "--set", "system.cropping.short=90"]
    args = ["train", "segment", tmp_path / "camvid", *flags, "--steps", 20]
    assert saccade(*args, "--out", tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    found = {r["metric"]: r["value"] for r in results}
    assert found["pixel accuracy"] > 0.25  # roads, buildings and skies are learned first
    out = tmp_path / "seen"
    assert saccade("predict", tmp_path / "run", tmp_path / "camvid" / "test", "--out", out) == 0
    with Image.open(next((out / "masks").iterdir())) as mask:
        assert mask.size == (480, 360)
