import io

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data import decode, jpeg

RAMP = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
SOFT = np.asarray(RAMP.resize((61, 43), Image.Resampling.BICUBIC))
PHOTO = Image.fromarray(np.stack([SOFT, SOFT[::-1], 255 - SOFT], 2))  # 43 high, 61 wide
WHOLE = PHOTO.resize((64, 48))  # of whole JPEG blocks


def encoded(picture=PHOTO, orientation=0, **options):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    picture.save(stream, "JPEG", exif=exif, **({"quality": 95} | options))
    return stream.getvalue()


def pillow(data):
    """Pillow's own reading of the file, upright."""
    with Image.open(io.BytesIO(data)) as picture:
        code = picture.getexif().get(0x0112, 1)
        rgb = picture.convert("RGB")
        turn = decode.TURNS.get(code)
        return np.asarray(rgb if turn is None else rgb.transpose(turn))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(options, mode):
    data = encoded(PHOTO.convert(mode), **options)
    assert np.array_equal(decode.decode(data, "x", 3).permute(1, 2, 0), pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_scaled_decodes_are_upright_and_show_the_same(orientation, scale):
    data = encoded(WHOLE, orientation)
    told = []

    def shrink(height, width):
        told.append((height, width))
        return scale

    x, got = decode.shrunk(data, "x", 3, shrink)
    whole = pillow(data)
    assert got == scale
    assert told == [whole.shape[:2]]
    small = np.asarray(Image.fromarray(whole).reduce(scale)).astype(int)
    gap = np.abs(x.permute(1, 2, 0).numpy() - small)
    assert gap.mean() < 1
    assert gap.max() < 12


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_part_of_a_block_counts_as_a_pixel(scale):
    x, _ = decode.shrunk(encoded(), "x", 3, lambda height, width: scale)
    assert x.shape[1:] == (-(-43 // scale), -(-61 // scale))


def test_the_header_gives_size_and_orientation_without_pixels():
    data = encoded(orientation=6)
    assert jpeg.header(data) == jpeg.Header(43, 61, 6)
    assert jpeg.header(encoded(PHOTO.convert("L"))) == jpeg.Header(43, 61, 1)


def test_what_is_no_common_jpeg_has_no_header():
    stream = io.BytesIO()
    PHOTO.save(stream, "PNG")
    assert jpeg.header(stream.getvalue()) is None
    assert jpeg.header(encoded(PHOTO.convert("CMYK"))) is None
    assert jpeg.header(encoded()[:40]) is None
    assert jpeg.header(b"") is None


@pytest.mark.parametrize(
    "exif", [b"", b"II", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*"]
)
def test_a_broken_exif_block_says_nothing(exif):
    block = b"Exif\0\0" + exif
    data = encoded()
    broken = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    head = jpeg.header(broken)
    assert head is not None
    assert head.orientation == 1
    assert torch.equal(decode.decode(broken, "x", 3), decode.decode(data, "x", 3))


def test_a_damaged_jpeg_is_judged_by_pillow():
    """Cut off in its pixels it is bad; rubbish after its end changes nothing."""
    data = encoded()
    with pytest.raises(decode.BadPicture, match="truncated"):
        decode.decode(data[: len(data) * 2 // 3], "x", 3)
    assert torch.equal(decode.decode(data + b"rubbish", "x", 3), decode.decode(data, "x", 3))


def test_missing_files_say_why(tmp_path):
    with pytest.raises(decode.BadPicture, match="no such file"):
        decode.decode(str(tmp_path / "none.jpg"), "none.jpg", 3)
    with pytest.raises(decode.BadPicture, match="is a directory"):
        decode.decode(str(tmp_path), "x.jpg", 3)
