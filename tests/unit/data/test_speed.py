import pytest

from saccade.core import View
from saccade.data import open_source, speed
from saccade.data.speed import bottleneck
from saccade.recipe import Normalize

VIEWS = (View(count=2, size=16),)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.02)


def test_every_stage_and_thread_count_is_timed(dirty_folder):
    folder, _ = dirty_folder
    found = speed.speed(open_source(str(folder)), VIEWS, Normalize(), threads=2)
    assert found["seconds"].keys() == {"read", "decode", "views"}
    assert found["seconds"]["read"] > 0
    assert {"1", "2"} <= found["pictures_per_second"].keys()
    assert found["views"] == 2
    assert found["pictures"] >= speed.BATCH


def test_too_few_pictures_are_not_timed(noise):
    assert speed.speed(noise(speed.BATCH - 1), VIEWS, Normalize(), threads=1) == {}


@pytest.mark.parametrize(
    ("seconds", "rates", "answer"),
    [
        (
            (5.0, 1.0, 1.0),
            {1: 1.0, 2: 1.0, 8: 8.0},
            "disk",
        ),  # more threads do not make a disk faster
        ((1.0, 1.0, 5.0), {1: 1.0, 2: 2.0, 8: 8.0}, "threads"),
        ((1.0, 5.0, 1.0), {1: 1.0, 2: 2.0, 8: 2.2}, "decoding"),
        ((1.0, 1.0, 5.0), {1: 1.0, 2: 2.0}, "augmentation"),
        ((1.0, 1.0, 5.0), {1: 4.0, 2: 2.0}, "augmentation"),  # a busy machine
    ],
)
def test_the_bottleneck_is_named(seconds, rates, answer):
    named = dict(zip(("read", "decode", "views"), seconds, strict=True))
    assert bottleneck(named, rates, 2) == answer
