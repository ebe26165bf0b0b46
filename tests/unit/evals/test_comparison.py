import json

import numpy as np
import pytest
from PIL import Image

from saccade.evals import compare
from saccade.evals.comparison import plot, table
from saccade.evals.interval import bootstrap
from saccade.evals.results import Result, pack


def result(model, values, protocol="knn-dino/1", metric="top1@20", test="x", unit="%", hits=True):
    found = bootstrap(values)
    return Result(
        model=model,
        protocol=protocol,
        metric=metric,
        value=found.value,
        low=found.low,
        high=found.high,
        n=len(values),
        settings={"test": test},
        hits=pack(values) if hits else "",
        unit=unit,
    )


A = np.arange(200) % 2 == 0
B = A | (np.arange(200) % 4 == 1)
PRECISION = np.linspace(0, 1, 200)


def test_every_other_model_against_the_first():
    results = [
        result("a", A),
        result("a", PRECISION, "retrieval/1", "mAP"),
        result("a", PRECISION, "label-free/1", "RankMe", unit="", hits=False),
        result("b", B),
        result("b", PRECISION**2, "retrieval/1", "mAP"),
        result("b", PRECISION, "label-free/1", "RankMe", unit="", hits=False),
        result("c", A, "linear-moco/1"),
    ]
    first, second = compare(results, "a")
    assert (first.model, first.than, first.n) == ("b", "a", 200)
    assert first.difference == pytest.approx(0.25)
    assert 0 < first.low < 0.25 < first.high
    assert first.p == pytest.approx(2 * 0.5**50)
    assert second.difference == pytest.approx((PRECISION**2 - PRECISION).mean(), abs=1e-6)
    assert second.p < 0.001
    json.dumps([first.to_dict(), second.to_dict()], allow_nan=False)
    assert table([first]).row_count == 1


def test_other_pictures_cannot_be_compared():
    with pytest.raises(ValueError, match="differ in protocol or test pictures"):
        compare([result("a", A), result("b", B, test="y")], "a")


def test_the_plot_draws_every_figure_where_it_lies(tmp_path):
    plot([result("a", A), result("b", B)], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as drawn:
        sheet = np.asarray(drawn.convert("RGB")).astype(int)
    blue, red = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)
    right = [np.flatnonzero((sheet[:, 330:752] == c).all(2).any(0)).max() for c in (blue, red)]
    assert right[0] < right[1]  # b's interval reaches further
    assert sheet.shape[1] == 860
