import numpy as np
import pytest
import torch

from saccade.core import View
from saccade.data import open_source
from saccade.data.band_views import color, fitted, skipped
from saccade.data.loader import ViewLoader
from saccade.nn.random import keys, uniform
from saccade.recipe import Normalize

NORMALIZE = Normalize(mean=(280.0, 3.0, 0.0, 7.0, 1.0), std=(10.0, 2.0, 1.0, 5.0, 3.0))
WHOLE = {"crop": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
PLAIN = View(size=24, jitter=0.0, grayscale=0.0, blur=0.0, **WHOLE)


@pytest.fixture
def folder(tmp_path):
    """20 float pictures of 5 channels, in the data's own unit."""
    g = np.random.default_rng(0)
    mean, std = (np.array(x)[:, None, None] for x in (NORMALIZE.mean, NORMALIZE.std))
    for k in range(20):
        np.save(tmp_path / f"{k:02d}.npy", (mean + std * g.normal(size=(5, 24, 24))).astype("f4"))
    return tmp_path


def test_brightness_and_contrast_are_the_equation_of_each_band():
    x = torch.randn(6, 5, 4, 4, dtype=torch.float64) * 3 + 1
    view = View(jitter=0.7, strength=(0.4, 0.3, 0.4, 0.1), grayscale=0.5, blur=0.0)
    key = keys(0, 0, torch.arange(6))
    out = color(x.float(), view, key, NORMALIZE).double()
    for i, draws in enumerate(uniform(key, 9, "jitter").double()):
        b, c = 0.6 + 0.8 * draws[1], 0.7 + 0.6 * draws[2]
        for band in range(5):
            u = (x[i, band] - NORMALIZE.mean[band]) / (4 * NORMALIZE.std[band]) + 0.5
            if draws[0] < 0.7:
                u = b * u
                u = c * u + (1 - c) * u.mean()
            torch.testing.assert_close(out[i, band], 4 * (u - 0.5), atol=2e-4, rtol=1e-4)


def test_views_of_a_whole_picture_keep_every_bit(folder):
    source = open_source(str(folder), channels=5)
    batch = next(ViewLoader(source, (PLAIN,), NORMALIZE, batch_size=4, seed=0).batches(0))
    mean, std = (torch.tensor(x)[:, None, None] for x in (NORMALIZE.mean, NORMALIZE.std))
    for i, x in zip(batch.index.tolist(), batch.images[0], strict=True):
        exact = torch.from_numpy(np.load(folder / source.name(i)))
        torch.testing.assert_close(x * std + mean, exact, atol=1e-4, rtol=1e-6)


def test_all_operations_run_on_bands_and_solarize_turns_about_the_mean(folder):
    source = open_source(str(folder), channels=5)
    views = (View(count=2, size=16), View(size=8, solarize=1.0, jitter=0.0, blur=0.0))
    batch = next(ViewLoader(source, views, NORMALIZE, batch_size=4, seed=0).batches(0))
    assert [tuple(x.shape) for x in batch.images] == [(4, 5, s, s) for s in (16, 16, 8)]
    assert all(bool(x.isfinite().all()) for x in batch.images)
    assert batch.images[2].max() <= 1e-5


def test_what_needs_rgb_is_taken_away_and_named():
    views = (View(), View(jitter=0.0, grayscale=0.0))
    assert skipped(views, 3) == []
    assert skipped(views, 5) == ["saturation", "hue", "grayscale"]
    assert skipped(views[1:], 5) == []
    assert skipped((View(strength=(0.4, 0.4, 0.0, 0.0)),), 1) == ["grayscale"]
    assert fitted(views[0], 3) is views[0]
    assert fitted(views[0], 1).strength == (0.4, 0.4, 0.0, 0.0)
    assert fitted(views[0], 1).grayscale == 0


def test_arrays_beside_pictures_are_other_files(folder, save):
    assert len(open_source(str(folder), channels=5)) == 20
    save(folder / "picture.png")
    source = open_source(str(folder))
    assert (len(source), source.skipped, source.wide) == (1, 20, False)


def test_rgb_arrays_are_wide_without_being_asked(tmp_path):
    x = np.random.default_rng(0).integers(0, 65536, (8, 9, 3), dtype=np.uint16)
    np.save(tmp_path / "a.npy", x)
    source = open_source(str(tmp_path))
    assert source.wide
    assert torch.equal((source.read(0) * 65535).round(), torch.from_numpy(x).permute(2, 0, 1))
    assert source.mode(0) == "uint16 x 3"
