from io import BytesIO

import numpy as np
import pages
import pytest
import torch
from PIL import Image

from saccade import pretraining
from saccade import run as runs
from saccade.data.source import open_source
from saccade.methods import get
from saccade.recipe import Normalize
from saccade.report import pictures, views


@pytest.fixture
def source(tmp_path):
    return open_source(str(pages.data(tmp_path / "data")), split="train")


def test_a_sheet_holds_each_picture_at_its_place(source):
    index = np.array([3, 4, 5, 30, 0])  # 30 is no picture
    sheet = pictures.sheet(source, index, Normalize(), threads=1, share=1)
    page = np.array(Image.open(BytesIO(sheet.data)).convert("RGB")).astype(int)
    assert sheet.points == [0, 1, 2, 3, 4]
    for k, i in enumerate(index.tolist()):
        y, x = (sheet.size * place + sheet.size // 2 for place in divmod(k, sheet.columns))
        wanted = [128] * 3 if i == 30 else np.array(Image.open(source.stored(i)))[0, 0]
        assert page[y, x] == pytest.approx(np.array(wanted), abs=8)


def test_more_pictures_than_fit_are_evenly_spread(source, monkeypatch):
    monkeypatch.setattr(pictures, "MOST", 10)
    sheet = pictures.sheet(source, np.arange(30), Normalize(), threads=1, share=2)
    assert sheet.points == [0, 6, 12, 18, 24]


def test_a_sheet_that_is_too_large_loses_quality(monkeypatch):
    g = np.random.default_rng(0)
    page = Image.fromarray(g.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    best, worst = (len(pictures.encoded(page, "WEBP", q)) for q in (75, 15))
    assert len(pictures._fitting(page, best)) == best
    assert len(pictures._fitting(page, best - 1)) < best
    assert len(pictures._fitting(page, 0)) == worst


@pytest.mark.parametrize("size", [(100, 40), (40, 100)])
def test_a_thumbnail_is_the_central_square(size):
    picture = Image.new("RGB", size, "red")
    side = min(size)
    middle = [(s - side) // 2 for s in size]
    picture.paste("blue", (*middle, middle[0] + side, middle[1] + side))
    assert np.array(pictures.square(picture, 10)).reshape(-1, 3).tolist() == [[0, 0, 255]] * 100


def test_bands_are_shown_about_their_mean():
    normalize = Normalize(mean=(10.0, 0.0, -5.0, 3.0), std=(2.0, 1.0, 1.0, 1.0))
    x = torch.tensor([14.0, 0.0, -7.0, 99.0])[:, None, None].expand(4, 2, 2)
    assert pictures.shown(x, normalize, wide=True).getpixel((0, 0)) == (255, 128, 0)
    one = pictures.shown(torch.full((1, 2, 2), 7, dtype=torch.uint8), Normalize(), wide=False)
    assert one.getpixel((1, 1)) == (7, 7, 7)


def test_views_are_those_that_the_run_trained_on(tmp_path):
    data = pages.data(tmp_path / "data", 12, broken=False)
    folder = pages.run(tmp_path / "run", data, "batch_size=4", "seed=3")
    run = runs.read(folder / "run.json")
    source = open_source(run.data, split="train")
    loader = pretraining.make_loader(run, _method(run), source, torch.device("cpu"))
    trained = {}
    for batch in loader.batches(0):
        for row, i in enumerate(batch.index.tolist()):
            trained[source.name(i)] = [x[row].clone() for x in batch.images]
    found = views.samples(run, source)
    assert len(found) == 4
    for sample in found:
        for view, x in zip(sample.views, trained[sample.name], strict=True):
            mean, std = (
                torch.tensor(v)[:, None, None] for v in (run.normalize.mean, run.normalize.std)
            )
            pixels = (x * std + mean).clamp(0, 1) * 255
            assert np.array(view) == pytest.approx(pixels.permute(1, 2, 0).numpy(), abs=0.51)


def _method(run):
    return get("simclr")(run.method, pretraining.backbones.create(run.backbone))
