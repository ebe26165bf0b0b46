import json
import statistics

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from saccade.bench.data import run_data, table, torchvision_transform
from saccade.core import View

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, 3.12


@pytest.fixture
def folder(tmp_path):
    g = np.random.default_rng(0)
    for k in range(5):
        x = g.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(x).save(tmp_path / f"{k}.jpg")
    (tmp_path / "broken.jpg").write_text("no picture")
    return str(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("views", "count", "threads"), [("dino", 8, 1), ("mae", 1, 2)])
def test_all_arms_make_the_views_of_the_same_pictures(folder, views, count, threads):
    found = run_data(folder, views=views, threads=threads, rounds=2, image_size=32)
    found = json.loads(json.dumps(found))
    assert list(found["arms"]) == ["decode", "saccade", "lightly", "torchvision.v2", "dataloader"]
    assert found["settings"]["pictures"] == 5  # without the broken one
    for arm in found["arms"].values():
        assert len(arm["seconds"]) == 2
        middle = statistics.median(arm["seconds"])
        assert arm["views_per_second"] == pytest.approx(5 * count / middle, rel=1e-5)
    assert found["arms"]["saccade"]["times saccade"] == {"median": 1, "low": 1, "high": 1}
    ours, floor = (found["arms"][name]["seconds"] for name in ("saccade", "decode"))
    ratios = [a / b for a, b in zip(ours, floor, strict=True)]
    middle = statistics.median(ratios)
    assert found["arms"]["saccade"]["times decode"]["median"] == pytest.approx(middle, rel=1e-5)


def test_dinos_local_crops_are_as_many_as_lightlys():
    rows = table("dino", 224)
    assert [(v.count, v.size) for v in rows] == [(1, 224), (1, 224), (6, 96)]
    assert [v.size for v in table("dino", 112)] == [112, 112, 48]


@pytest.mark.parametrize("library", [v1, v2])
def test_torchvisions_recipe_follows_the_table(library):
    rows = (View(count=2, size=32, solarize=0.2), View(size=16, jitter=0.0, order=("blur", "flip")))
    picture = Image.new("RGB", (40, 48))
    tail = [library.ToTensor()] if library is v1 else [library.ToImage()]
    views = torchvision_transform(rows, library, tail)(picture)
    assert [tuple(x.shape) for x in views] == [(3, 32, 32)] * 2 + [(3, 16, 16)]
    assert all(isinstance(x, torch.Tensor) for x in views)


def test_unknown_views_are_refused(folder):
    with pytest.raises(ValueError, match="no bench for 'byol'; choose from dino"):
        run_data(folder, views="byol")
