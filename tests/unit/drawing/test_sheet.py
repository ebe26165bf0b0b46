import numpy as np
import torch

from saccade.drawing.colors import MAGMA, SIGNED, VIRIDIS, dimmed, heat, paint, photo
from saccade.drawing.sheet import Cell, bars, sheet, stacked


def rgb(value):
    return [value >> 16, value >> 8 & 255, value & 255]


def test_the_ends_of_a_table_are_low_and_high_and_what_is_no_number_is_gray():
    x = torch.tensor([[0.0, 2.0, torch.nan, 9.0]])
    painted = paint(x, 0.0, 2.0)[:, 0].T.tolist()
    assert painted == [rgb(VIRIDIS[0]), rgb(VIRIDIS[-1]), [153] * 3, rgb(VIRIDIS[-1])]


def test_between_two_steps_colors_are_mixed():
    x = torch.tensor([[0.5 / 9]])
    expected = [round((a + b) / 2) for a, b in zip(rgb(VIRIDIS[0]), rgb(VIRIDIS[1]), strict=True)]
    assert np.abs(np.array(paint(x, 0.0, 1.0).flatten().tolist()) - expected).max() <= 1


def test_maps_below_zero_are_white_at_zero():
    painted = heat(torch.tensor([[-1.0, 0.0, 4.0]]))[:, 0].T.tolist()
    assert painted[1] == rgb(SIGNED[2])
    assert painted[2] == rgb(SIGNED[-1])
    assert heat(torch.tensor([[1.0, 2.0]]))[:, 0, 0].tolist() == rgb(MAGMA[0])


def test_a_photo_gets_its_pixels_back():
    pixels = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    normal = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.equal(photo(normal, mean, std), pixels)
    normal[:, 0, 0] = torch.nan
    assert photo(normal, mean, std)[:, 0, 0].tolist() == [153] * 3


def test_other_channels_become_gray():
    shown = photo(torch.randn(5, 4, 4), (0.0,) * 5, (1.0,) * 5)
    assert shown.shape == (3, 4, 4)
    assert torch.equal(shown[0], shown[2])
    assert (shown.min(), shown.max()) == (0, 255)


def test_dark_pixels_keep_a_quarter_of_their_light():
    x = torch.full((3, 1, 2), 200, dtype=torch.uint8)
    assert dimmed(x, torch.tensor([[1.0, 0.0]]))[0, 0].tolist() == [200, 50]


def test_a_sheet_shows_each_cell_of_a_map_as_a_square():
    x = torch.zeros(3, 2, 2, dtype=torch.uint8)
    x[1, 0, 1] = 250  # green: no letter is
    page = np.asarray(sheet("title", [[Cell("a", x), None, Cell("b", x)]], 420))
    assert page.shape[1] == 420
    bright = (page == (0, 250, 0)).all(2)
    assert bright.any(0).sum() == 2 * 66  # half of each of two cells; one place is empty
    assert bright.any(1).sum() == 66


def test_pages_stand_below_each_other():
    pages = [bars("t", {"a": 0.5, "b": 1.0}, 300), sheet("t", [[None]], 200)]
    whole = stacked(pages)
    assert whole.size == (300, sum(p.height for p in pages))
