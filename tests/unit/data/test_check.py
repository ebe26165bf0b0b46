import json

import pytest
import torch

from saccade.data import open_source
from saccade.data.check import check


def test_facts_of_a_dirty_folder(dirty_folder):
    folder, expected = dirty_folder
    facts = check(open_source(str(folder)), sample=200)
    assert facts["pictures"] == facts["sampled"] == 200
    assert {one["name"] for one in facts["unreadable"]} == expected.keys()
    assert facts["modes"]["CMYK"] == 2
    assert facts["modes"]["I;16"] == 2
    assert facts["width"] == {"min": 1, "median": 56.0, "max": 56}
    assert facts["height"]["max"] == 56  # those turned by their EXIF tag
    assert facts["duplicates"] == 1 + 1  # the dots, and the 16-bit ramps
    assert facts["pictures_per_second"] > 0
    json.dumps(facts)


def test_mean_and_deviation_are_those_of_all_pixels(noise):
    source = noise(9)
    facts = check(source)
    x = source.pictures.double() / 255
    assert facts["mean"] == pytest.approx(x.mean((0, 1, 2)).tolist())
    assert facts["std"] == pytest.approx(x.std((0, 1, 2), correction=0).tolist())
    assert facts["classes"] == 5


def test_the_sample_is_spread_and_finds_doubles(noise):
    source = noise(10)
    source.pictures[6] = source.pictures[0]
    assert check(source, sample=5)["duplicates"] == 1  # of 0 2 4 6 8
    assert check(source, sample=2)["duplicates"] == 0  # of 0 5


def test_nothing_readable_still_gives_an_answer(tmp_path):
    (tmp_path / "a.png").touch()
    facts = check(open_source(str(tmp_path)))
    assert facts["width"] == {}
    assert facts["unreadable"] == [{"name": "a.png", "reason": "empty file"}]
    assert torch.tensor(facts["std"]).eq(0).all()
