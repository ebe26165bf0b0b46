import pytest

from saccade.evals.remember import remembered
from saccade.evals.results import Result

FIGURE = Result(model="m", protocol="p/1", metric="top1", value=0.5, low=0.4, high=0.6, n=9)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))


def test_the_second_call_does_no_work(toy):
    sources = (toy(9), toy(4))
    assert remembered({"seed": 1}, sources, lambda: [FIGURE]) == [FIGURE]
    again = remembered({"seed": 1}, (toy(9), toy(4)), lambda: pytest.fail("worked again"))
    assert again == [FIGURE]


def test_other_settings_labels_or_pixels_are_measured_anew(toy):
    made = []

    def make():
        made.append(1)
        return [FIGURE]

    changed = toy(9)
    changed.x = changed.x + 1
    renamed = toy(9)
    renamed.classes = ("x", "y", "z")
    for settings, source in (
        *(({"seed": 1}, toy(9)), ({"seed": 2}, toy(9)), ({"seed": 1}, changed)),
        *(({"seed": 1}, renamed), ({"seed": 1}, toy(8)), ({"seed": 1}, toy(9, bad=(0,)))),
    ):
        remembered(settings, (source,), make)
    assert len(made) == 6
