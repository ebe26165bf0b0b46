import numpy as np
import pytest

from saccade.data import open_source
from saccade.data.source import BadPicture

RANDOM = np.random.default_rng(0)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def test_npz_has_two_splits_with_labels(tmp_path):
    x, xt = pixels(5, 8, 8, 3), pixels(3, 8, 8, 3)
    np.savez(tmp_path / "d.npz", x=x, y=np.uint8([0, 1, 2, 0, 1]), xt=xt, yt=np.uint8([2, 1, 0]))
    for split, want, labels in (("train", x, [0, 1, 2, 0, 1]), ("test", xt, [2, 1, 0])):
        source = open_source(str(tmp_path / "d.npz"), split=split)
        assert np.array_equal(source.read(1).permute(1, 2, 0).numpy(), want[1])
        assert source.labels.tolist() == labels
        assert (source.labels.dtype, source.split) == (np.int64, split)
    assert open_source(f"cifar10:{tmp_path / 'd.npz'}").classes[:2] == ("airplane", "automobile")


def test_arrays_change_channels_like_pictures_do(tmp_path):
    np.savez(tmp_path / "gray.npz", x=pixels(2, 4, 4))
    source = open_source(str(tmp_path / "gray.npz"))
    assert source.read(0).shape == (3, 4, 4)
    assert source.labels is None
    assert source.mode(0) == "L"


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"xt": pixels(2, 4, 4)}, r"has no x \(train pictures\), only \['xt'\]"),
        ({"x": np.zeros((2, 4, 4))}, r"float64 \(2, 4, 4, 1\) is not uint8 pictures"),
        ({"x": pixels(2, 4, 4, 5)}, "is not uint8 pictures"),
        ({"x": pixels(2, 4, 4), "y": np.arange(3)}, "3 labels for 2 pictures"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, held, says):
    np.savez(tmp_path / "d.npz", **held)
    with pytest.raises(ValueError, match=says):
        open_source(str(tmp_path / "d.npz"))


def test_pickles_inside_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="not an npz file of arrays"):
        open_source(str(tmp_path / "d.npz"))


def idx(values):
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def test_a_torchvision_dataset_is_read_by_name(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    x = pixels(4, 28, 28)
    for part, count in (("train", 4), ("t10k", 2)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(x[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    source = open_source(f"torchvision:MNIST:{tmp_path}", channels=1)
    assert np.array_equal(source.read(2)[0].numpy(), x[2])
    assert source.labels.tolist() == [0, 1, 2, 3]
    assert source.classes[3] == "3 - three"
    monkeypatch.setenv("SACCADE_DATASETS", str(tmp_path))
    assert len(open_source("torchvision:MNIST", split="test")) == 2


def test_a_dataset_without_splits_or_labels_comes_whole():
    source = open_source("torchvision:FakeData", split="test", limit=2)
    assert (source.split, source.labels) == ("", None)
    assert source.read(1).shape == (3, 224, 224)


@pytest.mark.parametrize("data", ["cifar10", "torchvision:CIFAR10", "torchvision:STL10"])
def test_an_absent_dataset_says_how_to_download_it(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SACCADE_DATASETS", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"download it: python -c .*download=True"):
        open_source(data, split="test")


def test_what_is_no_picture_is_bad(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_DATASETS", str(tmp_path))
    source = open_source("torchvision:FakeData")
    source.dataset.transform = str
    with pytest.raises(BadPicture, match="a str, not a picture"):
        source.read(0)
