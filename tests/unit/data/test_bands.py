import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from saccade.data import bands

WIDE = np.random.default_rng(0).integers(0, 65536, (20, 24, 12), dtype=np.uint16)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tiff(array, **settings):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **settings)
    return stream.getvalue()


FILES = {
    "tiff, channels last": lambda: tiff(WIDE, photometric="minisblack", planarconfig="contig"),
    "tiff, planes": lambda: tiff(WIDE.transpose(2, 0, 1), photometric="minisblack"),
    "tiff, deflated": lambda: tiff(WIDE, photometric="minisblack", compression="zlib"),
    "big-endian bigtiff": lambda: tiff(
        WIDE, photometric="minisblack", planarconfig="contig", byteorder=">", bigtiff=True
    ),
    "npy, channels last": lambda: npy(WIDE),
    "npy, channels first": lambda: npy(np.asfortranarray(WIDE.transpose(2, 0, 1))),
}


@pytest.mark.parametrize("name", FILES)
def test_sixteen_bits_keep_every_step(name, tmp_path):
    data = FILES[name]()
    x = bands.decode(data, 12)
    assert x.shape == (12, 20, 24)
    assert np.array_equal((x.double() * 65535).round().numpy(), WIDE.transpose(2, 0, 1))
    assert bands.is_array(data)
    assert bands.mode(data) == "uint16 x 12"
    path = tmp_path / "file"
    path.write_bytes(data)
    assert bands.decode(str(path), 12).equal(x)
    assert bands.mode(str(path)) == "uint16 x 12"


def test_floats_and_signed_numbers_keep_their_unit():
    x = np.random.default_rng(0).normal(200, 50, (5, 8, 9)).astype(np.float32)
    assert np.array_equal(bands.decode(npy(x), 5).numpy(), x)
    assert np.array_equal(bands.decode(npy(x.astype(np.int16)), 5).numpy(), x.astype(np.int16))
    assert bands.decode(npy(np.full((4, 4, 5), 51, np.uint8)), 5).unique().tolist() == [
        pytest.approx(0.2)
    ]


def test_a_flat_array_has_one_channel():
    assert bands.decode(npy(np.ones((4, 6))), 1).equal(torch.ones(1, 4, 6))
    assert bands.mode(npy(np.ones((4, 6)))) == "float64 x 1"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8, 7)), "7 channels, not 12; --set backbone.channels=7"),
        (np.zeros((4, 4)), "1 channels, not 12"),
        (np.zeros((2, 4, 4, 12)), "not 12"),
        (np.full((14, 14, 12), np.nan), "NaN"),
        (np.array([{}]), "allow_pickle"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        bands.decode(npy(array), 12)


def test_ordinary_pictures_are_left_to_the_ordinary_decoder():
    g = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(g).save(stream, kind)
        assert not bands.is_array(stream.getvalue())
    stream = io.BytesIO()
    Image.fromarray(WIDE[..., 0]).save(stream, "TIFF")
    assert not bands.is_array(stream.getvalue())  # 16-bit gray: Pillow's
    assert bands.is_array(tiff(WIDE[..., :3], photometric="rgb"))
    assert bands.is_array(tiff(WIDE[..., :5].astype(np.uint8), photometric="minisblack"))
