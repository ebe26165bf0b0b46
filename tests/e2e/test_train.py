"""`saccade train` and `saccade predict` as users meet them."""

import json

import boxes
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from terminal import on_two_ranks, saccade

TINY = [
    *("--backbone", "resnet10_w16", "--batch-size", "2", "--workers", "1"),
    *("--set", "system.width=16", "--set", "system.hidden=16", "--set", "engine.log_every=1"),
    *("--set", "system.anchors=[4,8,16,32,64]", "--set", "system.framing.short=[40,48]"),
    *("--set", "system.framing.test_short=48", "--set", "system.framing.longest=64"),
]


@pytest.fixture
def data(tmp_path):
    splits = {"train2017": boxes.draw(6, 0), "val2017": boxes.draw(3, 1)}
    return boxes.coco(tmp_path / "data", splits)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_train_measures_predicts_and_resumes(data, tmp_path, capsys):
    out, seen = tmp_path / "run", tmp_path / "seen"
    masks = ["--set", "system.masks=true"]
    args = ["train", "detect", data, *TINY, *masks, "--steps", 3, "--out", out]
    assert saccade(*args) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert {r["protocol"] for r in results} == {"coco-box/1", "coco-mask/1", "voc07-box/1"}
    assert {r["metric"] for r in results} == {"AP", "AP50", "AP75"}
    assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in results)
    assert (out / "done.json").is_file()
    assert saccade("train", "detect", data, "--out", out, "--resume") == 0
    again = json.loads((out / "results.json").read_text())["results"]
    assert again == results
    assert saccade("train", "detect", data, "--config", out / "run.json", "--out", seen) == 0
    assert (seen / "system.safetensors").read_bytes() == (out / "system.safetensors").read_bytes()

    (data / "images" / "val2017" / "1.png").write_bytes(b"broken")
    capsys.readouterr()
    assert saccade("predict", out, data / "images" / "val2017", "--out", tmp_path / "p") == 0
    assert "left out 1.png" in capsys.readouterr().err
    found = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert found["classes"] == list(boxes.CLASSES)
    assert [p["picture"] for p in found["pictures"]] == ["0.png", "2.png"]
    for picture in found["pictures"]:
        assert (picture["height"], picture["width"]) == (48, 64)
        with Image.open(tmp_path / "p" / picture["drawn"]) as drawn:
            assert drawn.size == (64, 48)
        for one in picture["objects"]:
            assert one["class"] in boxes.CLASSES
            assert reference.decode(one["mask"]).shape == (48, 64)


def test_a_fine_tuned_backbone_is_weights_like_any_other(data, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert saccade("train", "detect", data, *TINY, "--steps", 1, "--out", first) == 0
    flags = [f for f in TINY if f not in ("--backbone", "resnet10_w16")]
    args = ["train", "detect", data, *flags, "--weights", first, "--steps", 1, "--out", second]
    assert saccade(*args) == 0
    run = json.loads((second / "run.json").read_text())
    assert run["backbone"]["name"] == "resnet10_w16"
    picture = data / "images" / "val2017" / "0.png"
    assert saccade("predict", second, picture, "--out", tmp_path / "one") == 0
    found = json.loads((tmp_path / "one" / "predictions.json").read_text())
    assert len(found["pictures"]) == 1


@pytest.mark.slow
def test_two_ranks_train_through_the_command_line(data, tmp_path, monkeypatch):
    args = ["train", "detect", data, *TINY, "--steps", 2, "--out", tmp_path / "run"]
    assert on_two_ranks(monkeypatch, *args) == 0
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.fixture
def wrong(data, tmp_path):
    """Name of a mistake -> command line."""
    flat, other = tmp_path / "flat", tmp_path / "other"
    boxes.save(flat, boxes.draw(2)[0])
    plain = boxes.coco(tmp_path / "plain", {"train2017": boxes.draw(2)}, outlines=False)
    boxes.voc(other, {"train": boxes.draw(2), "val": boxes.draw(2)})
    for file in (other / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<name>blue", "<name>green"))
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    good = [*TINY, "--steps", 1, "--out", tmp_path / "x"]
    return {
        "unknown system": ["train", "detekt", data, *good],
        "no annotations": ["train", "detect", flat, *good],
        "no outlines": ["train", "detect", plain, *good, "--set", "system.masks=true"],
        "unknown class": ["train", "detect", data, *good, "--eval-data", other],
        "misspelt setting": ["train", "detect", data, *good, "--set", "system.nek=c4"],
        "setting of the system": ["train", "detect", data, *good, "--set", "head.relation=true"],
        "wrong neck": ["train", "detect", data, *good, "--set", "system.neck=simple"],
        "unknown recipe": ["train", "detect", data, *good, "--recipe", "coco-fpn"],
        "large batch": ["train", "detect", data, *good, "--batch-size", 64],
        "used folder": ["train", "detect", data, *TINY, "--out", used],
        "predict with nothing": ["predict", flat, flat, "--out", tmp_path / "y"],
        "predict into a used folder": ["predict", flat, flat, "--out", used],
        "config of another kind": ["pretrain", "--config", _run_json(tmp_path), "--out", "x"],
    }


def _run_json(folder):
    path = folder / "run.json"
    path.write_text(json.dumps({"name": "simclr", "system": {}}))
    return path


MISTAKES = {
    "unknown system": "did you mean detect",
    "no annotations": "has no annotations",
    "no outlines": "boxes without outlines",
    "unknown class": "'green' was not trained",
    "misspelt setting": "did you mean system.neck",
    "setting of the system": "unknown setting head; did you mean system.head?",
    "wrong neck": "plain ViT",
    "unknown recipe": "did you mean coco-fpn-2x",
    "large batch": "batch_size=64",
    "used folder": "--overwrite",
    "predict with nothing": "run.json does not exist",
    "predict into a used folder": "not empty",
    "config of another kind": "has no method",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_2(wrong, mistake, capsys):
    capsys.readouterr()
    assert saccade(*wrong[mistake]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert MISTAKES[mistake] in told


def test_boxes_are_drawn_in_the_color_of_their_class():
    import torch

    from saccade.core import Found
    from saccade.domains.detection import COLORS, drawn

    found = Found(
        boxes=torch.tensor([[4.0, 20, 40, 44], [2, 2, 9, 9]]),
        labels=torch.tensor([1, 0]),
        scores=torch.tensor([0.9, 0.4]),
        masks=torch.zeros(2, 48, 64, dtype=torch.bool),
    )
    pixels = np.array(drawn(torch.zeros(3, 48, 64, dtype=torch.uint8), found, boxes.CLASSES))
    assert tuple(pixels[44, 20]) == COLORS[1]
    assert (pixels[2:8, 2:9] == 0).all()  # below the score that is drawn
