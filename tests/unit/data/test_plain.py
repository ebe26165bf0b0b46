import pytest
import torch
from PIL import Image

from saccade.data import open_source
from saccade.data.plain import pictures
from saccade.recipe import Normalize

RAW = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
OPTIONS = {"interpolation": "bilinear", "normalize": RAW, "batch_size": 4, "threads": 2}


def test_pictures_come_in_order_normalized(noise):
    source = noise(10, size=8)
    norm = Normalize(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    got = list(pictures(source, size=8, resize=0, **OPTIONS | {"normalize": norm}))
    assert [len(index) for _, index in got] == [4, 4, 2]
    assert torch.cat([index for _, index in got]).tolist() == list(range(10))
    x = torch.cat([x for x, _ in got])
    want = source.pictures.permute(0, 3, 1, 2) / 255 - torch.tensor(norm.mean)[:, None, None]
    torch.testing.assert_close(x, want / torch.tensor(norm.std)[:, None, None])


def test_chosen_indices_are_kept_in_their_order(noise):
    got = list(pictures(noise(10), size=8, resize=8, indices=[7, 2, 5], **OPTIONS))
    assert got[0][1].tolist() == [7, 2, 5]


def test_bad_pictures_are_left_out_and_named(dirty_folder):
    folder, expected = dirty_folder
    source = open_source(str(folder))
    bad = []
    got = list(pictures(source, size=8, resize=8, bad=bad, **OPTIONS))
    assert sum(len(x) for x, _ in got) == 192
    assert {one.name for one in bad} == expected.keys()
    assert {source.name(int(i)) for _, index in got for i in index}.isdisjoint(expected)


def test_a_small_picture_is_padded_black(tmp_path):
    Image.new("RGB", (2, 2), (255, 255, 255)).save(tmp_path / "a.png")
    ((x, _),) = pictures(open_source(str(tmp_path)), size=6, resize=0, **OPTIONS)
    assert x[0, 0].sum() == 4
    assert x[0, 0, 2:4, 2:4].sum() == 4


def test_normalization_must_fit_the_channels(noise):
    with pytest.raises(ValueError, match=r"normalize\.mean"):
        list(pictures(noise(2, channels=1), size=8, resize=0, **OPTIONS))
