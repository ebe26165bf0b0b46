import json

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data import open_source
from saccade.data.check import facts, labels, scan, shared


def look(source, sample=1000):
    return scan(source, sample=sample, threads=2)


def smooth(seed):
    colors = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((64, 48), Image.Resampling.BICUBIC)


def test_facts_of_a_dirty_folder(dirty_folder):
    folder, expected = dirty_folder
    found = facts(look(open_source(str(folder))))
    assert found["pictures"] == found["sampled"] == 200
    assert {one["name"] for one in found["unreadable"]} == expected.keys()
    assert found["modes"]["CMYK"] == 2
    assert found["depths"] == {"8 bits": 190, "16 bits": 2}
    assert found["width"] == {"min": 1, "median": 56.0, "max": 56}
    assert found["height"]["max"] == 56  # those turned by their EXIF tag
    assert found["duplicates"]["exact"] == 1 + 1  # the dots, and the 16-bit ramps
    assert [sorted(group) for group in found["duplicates"]["exact_groups"]] == [
        ["deep_0.png", "deep_1.png"],
        ["dot_0.png", "dot_1.png"],
    ]
    json.dumps(found)


def test_mean_and_deviation_are_those_of_all_pixels(noise):
    source = noise(9)
    found = facts(look(source))
    x = source.pictures.double() / 255
    assert found["mean"] == pytest.approx(x.mean((0, 1, 2)).tolist(), abs=1e-6)
    assert found["std"] == pytest.approx(x.std((0, 1, 2), correction=0).tolist(), abs=1e-6)
    assert found["range"] == pytest.approx([0, 1])


def test_the_sample_is_spread_and_finds_doubles(noise):
    source = noise(10)
    source.pictures[6] = source.pictures[0]
    assert facts(look(source, 5))["duplicates"]["exact"] == 1  # of 0 2 4 6 8
    assert facts(look(source, 2))["duplicates"]["exact"] == 0  # of 0 5


def test_labels_are_counted_over_the_whole_set(noise):
    source = noise(10)
    source.labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 3, -1])
    assert labels(source) == {
        "classes": 5,
        "labeled": 9,
        "unlabeled": 1,
        "counts": {"a": 6, "b": 2, "d": 1, "c": 0, "e": 0},
        "empty": ["c", "e"],
        "imbalance": 6.0,
    }
    source.labels = None
    assert labels(source) == {}


def test_near_and_exact_copies_within_and_between_sets(tmp_path):
    for side in ("train", "test"):
        (tmp_path / side).mkdir()
    for k in range(6):
        smooth(k).save(tmp_path / "train" / f"{k}.png")
        smooth(10 + k).save(tmp_path / "test" / f"{k}.png")
    smooth(0).save(tmp_path / "train" / "again.jpg", quality=80)
    smooth(1).save(tmp_path / "test" / "copy.png")
    smooth(2).resize((48, 36)).save(tmp_path / "test" / "small.png")
    train, test = (look(open_source(str(tmp_path / side))) for side in ("train", "test"))
    within = facts(train)["duplicates"]
    assert (within["exact"], within["near"]) == (0, 1)
    assert [sorted(pair[:2]) for pair in within["near_pairs"]] == [["0.png", "again.jpg"]]
    between = shared(train, test)
    assert between["exact_pairs"] == [["1.png", "copy.png"]]
    assert [pair[:2] for pair in between["near_pairs"]] == [["2.png", "small.png"]]


def test_nothing_readable_still_gives_an_answer(tmp_path):
    (tmp_path / "a.png").touch()
    found = facts(look(open_source(str(tmp_path))))
    assert found["width"] == {}
    assert found["unreadable"] == [{"name": "a.png", "reason": "empty file"}]
    assert torch.tensor(found["std"]).eq(0).all()
