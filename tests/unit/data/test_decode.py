import io

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.decode import BadPicture, decode, mode


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def marked():
    """Black, 3 high and 5 wide, with one red pixel at row 0, column 1."""
    pixels = np.zeros((3, 5, 3), dtype=np.uint8)
    pixels[0, 1] = (255, 0, 0)
    return Image.fromarray(pixels)


# Where EXIF orientation k puts what the camera stored at row 0, column 1 of 3 rows and 5 columns.
UPRIGHT = {
    1: (0, 1),
    2: (0, 3),
    3: (2, 3),
    4: (2, 1),
    5: (1, 0),
    6: (1, 2),
    7: (3, 2),
    8: (3, 0),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    x = decode(encoded(marked(), exif=exif), "x", 3)
    assert tuple(x[0].nonzero()[0].tolist()) == UPRIGHT[orientation]
    assert tuple(x.shape) == ((3, 3, 5) if orientation < 5 else (3, 5, 3))


def test_sixteen_bits_are_scaled_and_rounded_not_clipped():
    wide = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    x = decode(encoded(Image.fromarray(wide)), "x", 3)
    assert x[0, 0].tolist() == [round(v / 257) for v in wide[0].tolist()]
    assert torch.equal(x[0], x[2])


def test_floats_between_0_and_1_are_scaled_and_others_refused():
    x = decode(encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF"), "x", 1)
    assert x[0, 0].tolist() == [0, 128, 255]
    with pytest.raises(BadPicture, match=r"outside 0\.\.1"):
        decode(encoded(Image.fromarray(np.array([[0.0, 7.0]], np.float32)), "TIFF"), "x", 1)


def test_palette_with_transparency_gives_its_colors():
    picture = Image.new("P", (2, 1))
    picture.putpalette([9, 8, 7, 100, 150, 200])
    picture.putpixel((1, 0), 1)
    data = encoded(picture, transparency=bytes([0, 128]))
    assert decode(data, "x", 3)[:, 0].T.tolist() == [[9, 8, 7], [100, 150, 200]]
    assert decode(data, "x", 4)[3, 0].tolist() == [0, 128]


def test_alpha_is_dropped_for_3_channels_and_kept_for_4():
    data = encoded(Image.new("RGBA", (1, 1), (1, 2, 3, 0)))
    assert decode(data, "x", 3).flatten().tolist() == [1, 2, 3]
    assert decode(data, "x", 4).flatten().tolist() == [1, 2, 3, 0]


def test_gray_becomes_three_equal_channels_and_color_one_luma():
    assert decode(encoded(Image.new("L", (1, 1), 77)), "x", 3).flatten().tolist() == [77] * 3
    red = decode(encoded(Image.new("RGB", (1, 1), (255, 0, 0))), "x", 1)
    assert red.flatten().tolist() == [round(0.299 * 255)]


def test_cmyk_jpeg_comes_out_in_its_colors():
    orange = Image.new("RGB", (16, 16), (240, 120, 10))
    x = decode(encoded(orange.convert("CMYK"), "JPEG", quality=95), "x", 3).float()
    assert (x.mean((1, 2)) - torch.tensor([240.0, 120.0, 10.0])).abs().max() < 4


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x", 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_mode_is_the_stored_one():
    assert mode(encoded(Image.new("L", (1, 1))), "x") == "L"
    assert mode(encoded(Image.fromarray(np.zeros((1, 1), np.uint16))), "x") == "I;16"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"words", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
)
def test_bytes_that_are_no_picture_say_why(data, reason):
    with pytest.raises(BadPicture) as caught:
        decode(data, "some.jpg", 3)
    assert (caught.value.name, caught.value.reason) == ("some.jpg", reason)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_in_half_is_bad(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert decode(data, "x", 3).shape == (3, 40, 40)
    with pytest.raises(BadPicture):
        decode(data[: len(data) // 2], "x", 3)


def test_a_decompression_bomb_is_bad(monkeypatch):
    data = encoded(Image.new("L", (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadPicture, match="decompression bomb"):
        decode(data, "x", 3)


def test_a_missing_file_and_a_directory_say_so(tmp_path):
    with pytest.raises(BadPicture, match="no such file"):
        decode(str(tmp_path / "x.png"), "x.png", 3)
    with pytest.raises(BadPicture, match="is a directory"):
        decode(str(tmp_path), "x.png", 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_make_the_picture_bad():
    data = encoded(marked(), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken")
    assert decode(data, "x", 3).shape == (3, 3, 5)
