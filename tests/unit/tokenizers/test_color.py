import pytest
import torch

from saccade import tokenizers
from saccade.tokenizers.color import Color


def test_the_code_is_the_mean_color_in_eight_steps_written_as_loops():
    x = torch.rand(2, 3, 8, 12)
    codes = Color().encode(x, (2, 3))
    assert codes.shape == (2, 2, 3)
    for b in range(2):
        for i in range(2):
            for j in range(3):
                cell = x[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                r, g, blue = (min(int(8 * float(c.mean())), 7) for c in cell)
                assert codes[b, i, j] == 64 * r + 8 * g + blue


def test_black_white_and_what_lies_beyond_have_codes():
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0])[:, None, None, None].expand(-1, 3, 2, 2)
    assert Color().encode(x, (1, 1)).flatten().tolist() == [0, 0, 511, 511]


def test_a_painted_code_has_that_code():
    codes = torch.arange(512).view(2, 16, 16)
    picture = Color().decode(codes, (32, 48))
    assert picture.shape == (2, 3, 32, 48)
    assert torch.equal(Color().encode(picture, (16, 16)), codes)


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("", 3, "setting method.tokenizer is missing; give color"),
        ("nowhere", 3, "'nowhere' is not there; give color"),
        ("color", 5, "color is for pictures of 3 channels, not 5"),
    ],
)
def test_a_wrong_name_is_told_with_its_remedy(name, channels, message):
    with pytest.raises(ValueError, match=message):
        tokenizers.load(name, channels)
