import json
import shutil

import numpy as np
import pytest
from PIL import Image
from terminal import saccade

from saccade.core import View
from saccade.data import speed
from saccade.data_report import remedy
from saccade.doctor import installation, torch_mismatch


@pytest.mark.parametrize(
    ("torch", "torchvision"), [("2.15.0+cpu", "0.29.2"), ("2.15.0", "0.29.2+cpu")]
)
def test_a_cpu_torch_beside_a_full_torchvision_is_named_with_the_remedy(torch, torchvision):
    assert "pip install --force-reinstall torch torchvision" in torch_mismatch(torch, torchvision)


@pytest.mark.parametrize(
    ("torch", "torchvision"),
    [("2.15.0", "0.29.2"), ("2.15.0+cpu", "0.29.2+cpu"), ("2.15.0+cu130", "0.29.2")],
)
def test_builds_that_work_together_are_not_blamed(torch, torchvision):
    assert torch_mismatch(torch, torchvision) is None


def test_a_missing_package_is_named():
    assert "missing" in torch_mismatch(None, "0.29.2")


def test_this_installation_is_well():
    found = installation()
    assert found["problems"] == []
    assert found["packages"]["timm"]
    assert found["devices"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Train and test pictures of two classes; one is in both, one is broken."""
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    g = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for k in range(6):
                x = g.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                Image.fromarray(x).save(tmp_path / split / label / f"{k}.png")
    return tmp_path


def examine(*args):
    return saccade("doctor", *args)


def test_good_pictures_have_no_problem_and_all_is_in_the_json(pictures, capsys):
    assert examine(pictures, "--method", "mae", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert (found["data"]["pictures"], found["eval"]["pictures"]) == (12, 12)
    assert found["data"]["labels"]["counts"] == {"a": 6, "b": 6}
    assert (found["shared"]["exact"], found["shared"]["near"]) == (0, 0)
    assert found["data"]["speed"]["method"] == "mae"
    assert any(note.startswith("bottleneck: ") for note in found["notes"])


def test_broken_pictures_and_test_pictures_seen_in_training_are_problems(pictures, capsys):
    (pictures / "train" / "a" / "broken.png").write_text("no picture")
    shutil.copy(pictures / "train" / "b" / "3.png", pictures / "test" / "b" / "copy.png")
    (pictures / "test" / "c").mkdir()
    shutil.move(pictures / "test" / "b" / "0.png", pictures / "test" / "c" / "0.png")
    args = [pictures / "train", "--eval-data", pictures / "test", "--sample", "20"]
    assert examine(*args) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "problem: data: 1 of 13 pictures are unreadable" in said
    assert "problem: 1 test pictures are training pictures too" in said
    assert "problem: classes of the test pictures that the training pictures lack: c" in said
    assert "a/broken.png: not a picture" in said
    assert "b/3.png = b/copy.png" in said


def test_a_sample_says_how_much_was_looked_at(pictures, capsys):
    assert examine(pictures / "train", "--sample", "4") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 of 12 pictures were looked at, evenly spread; --sample 12 takes all" in said


@pytest.mark.parametrize(
    ("bottleneck", "words"),
    [
        ("disk", "reading files takes longest; `saccade pack photos --size 256"),
        ("threads", "10 pictures a second with 2, 40 with 8; add --workers 8"),
        ("decoding", "decoding takes longest"),
        ("augmentation", "a GPU takes over"),
    ],
)
def test_every_bottleneck_has_its_remedy(bottleneck, words):
    rates = {"1": 5.0, "2": 10.0, "8": 40.0}
    timing = {"bottleneck": bottleneck, "threads": 2, "cores": 8, "pictures_per_second": rates}
    assert words in remedy("photos", timing, (View(size=96), View(size=224)))
