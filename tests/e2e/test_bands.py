"""Pictures of 5 and 12 channels, from files to measured backbones, through the commands."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from terminal import saccade

from saccade.data import speed

SIMCLR = ["--method", "simclr", "--backbone", "resnet10_w16", "--set", "method.hidden=32"]
MAE = ["--method", "mae", "--backbone", "vit_nano_patch8_64"]
SHORT = ["--recipe", "small", "--steps", 2, "--batch-size", 8, "--set", "engine.knn_every=0"]


@pytest.fixture
def bands(tmp_path):
    """Writes a labelled folder of this many channels and returns its training pictures."""

    def write(channels):
        g = np.random.default_rng(0)
        pictures = []
        for split, n in (("train", 8), ("test", 4)):
            for label in "ab":
                folder = tmp_path / "data" / split / label
                folder.mkdir(parents=True)
                for k in range(n):
                    x = 2000 + 300 * g.normal(size=(channels, 4, 4)).repeat(8, 1).repeat(8, 2)
                    if channels == 12:
                        x = x.astype(np.uint16)
                        tifffile.imwrite(folder / f"{k}.tif", x, photometric="minisblack")
                        x = x / 65535
                    else:
                        x = x.astype(np.float32)
                        np.save(folder / f"{k}.npy", x.transpose(1, 2, 0))
                    if split == "train":
                        pictures.append(x)
        return np.stack(pictures)

    return write


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "method"), [(12, SIMCLR), (12, MAE), (5, SIMCLR), (5, MAE)])
def test_bands_pretrain_measure_and_embed(channels, method, bands, tmp_path, capsys):
    pictures = bands(channels)
    data, out = tmp_path / "data", tmp_path / "run"
    args = ["pretrain", data, *method, *SHORT, "--set", f"backbone.channels={channels}"]
    assert saccade(*args, "--out", out) == 0
    said = capsys.readouterr().err
    assert said.count(f"saccade: {channels} channels") == 1
    assert ("need RGB and are skipped" in said) == (method is SIMCLR)
    normalize = json.loads((out / "run.json").read_text())["normalize"]
    assert normalize["mean"] == pytest.approx(pictures.mean((0, 2, 3)).tolist(), rel=1e-4)
    assert normalize["std"] == pytest.approx(pictures.std((0, 2, 3)).tolist(), rel=1e-3)
    assert saccade(*args, "--out", out, "--resume") == 0
    table = tmp_path / "vectors.parquet"
    assert saccade("embed", out / "backbone", "--data", data, "--out", table) == 0
    vectors = np.stack(pq.read_table(table)["vector"].to_pylist())
    assert len(vectors) == 16
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ([], "12 channels, not 3; --set backbone.channels=12"),
        (
            ["--set", "backbone.channels=12", "--set", "normalize.mean=[0.1,0.2]"],
            "setting normalize.mean has 2 values, the data 12 channels; set normalize.mean=[...] "
            "with one for each, as `saccade doctor` prints them",
        ),
    ],
)
def test_wrong_channels_are_named_with_the_remedy(sets, says, bands, tmp_path, capsys):
    bands(12)
    args = ["pretrain", tmp_path / "data", *SIMCLR, *SHORT, *sets, "--out", tmp_path / "run"]
    assert saccade(*args) == 2
    assert says in capsys.readouterr().err


def test_doctor_prints_the_settings_for_bands(bands, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    pictures = bands(5)
    assert saccade("doctor", tmp_path / "data", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["channels"] == 5
    assert found["data"]["modes"] == {"float32 x 5": 16}
    assert found["data"]["depths"] == {"32-bit float": 16}
    assert found["data"]["mean"] == pytest.approx(pictures.mean((0, 2, 3)).tolist(), rel=1e-5)
    (note,) = (note for note in found["notes"] if note.startswith("pretrain with"))
    assert "--set backbone.channels=5 --set normalize.mean=[" in note
    assert note.endswith("saturation, hue, grayscale need RGB and are skipped")
