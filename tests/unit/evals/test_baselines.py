import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saccade.evals import trivial
from saccade.evals.baselines import color_histogram, hog


def test_histogram_equals_numpys():
    torch.manual_seed(0)
    x = torch.rand(3, 3, 10, 12)
    for picture, found in zip(x, color_histogram(x), strict=True):
        pixels = picture.flatten(1).T.numpy()
        counts, _ = np.histogramdd(pixels, bins=(8, 8, 8), range=[(0, 1)] * 3)
        expected = counts.transpose(2, 1, 0).ravel() / 120  # red varies fastest
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_histogram_takes_white_black_and_one_channel():
    assert color_histogram(torch.ones(1, 3, 4, 4))[0, -1] == 1
    assert color_histogram(torch.zeros(1, 1, 4, 4)).tolist() == [[1.0] + [0.0] * 7]


def test_histogram_forgets_where_pixels_stand():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    mixed = x.flatten(2)[..., torch.randperm(64)].unflatten(2, (8, 8))
    assert torch.allclose(color_histogram(x), color_histogram(mixed))


@pytest.mark.parametrize(("angle", "bins"), [(0.0, (8, 0)), (math.pi / 2, (4, 4)), (0.35, (0, 1))])
def test_hog_finds_the_direction_of_a_ramp(angle, bins):
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    ramp = (column * math.cos(angle) + row * math.sin(angle)) / 200
    cells = hog(ramp.expand(1, 3, 64, 64)).unflatten(1, (49, 9, 4))[0, 24]  # an inner block
    strength = cells.sum(1)
    assert set(strength.topk(len(set(bins))).indices.tolist()) == set(bins)
    assert strength.topk(len(set(bins))).values.sum() > 0.99 * strength.sum()


def test_hog_blocks_are_unit_long_and_blind_to_contrast():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    found = hog(x)
    assert torch.allclose(found.unflatten(1, (49, 36)).norm(dim=-1), torch.ones(2, 49), atol=1e-5)
    assert torch.allclose(hog(0.3 * x + 0.2), found, atol=1e-4)


def test_hog_equals_loops_over_pixels():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 16, 16)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")[0, 0]
    cells = torch.zeros(2, 2, 9)
    for r in range(16):
        for c in range(16):
            dx = float(padded[r + 1, c + 2] - padded[r + 1, c])
            dy = float(padded[r + 2, c + 1] - padded[r, c + 1])
            place = math.atan2(dy, dx) % math.pi / math.pi * 9 - 0.5
            low = math.floor(place)
            strength = math.hypot(dx, dy)
            cells[r // 8, c // 8, low % 9] += strength * (low + 1 - place)
            cells[r // 8, c // 8, (low + 1) % 9] += strength * (place - low)
    block = F.normalize(F.normalize(cells.flatten(), dim=0).clamp(max=0.2), dim=0)
    found = hog(x)[0].unflatten(0, (9, 2, 2)).permute(1, 2, 0).flatten()
    assert torch.allclose(found, block, atol=1e-4)


def test_color_tells_brightness_classes_apart_and_chance_answers_one_class(toy):
    chance, color, edges = trivial(toy(60), toy(30, seed=1))
    assert [r.protocol for r in (chance, color, edges)] == [
        "chance/1",
        "color-histogram/1",
        "hog/1",
    ]
    assert chance.value == pytest.approx(1 / 3)
    assert chance.settings["uniform"] == pytest.approx(1 / 3)
    assert color.value == 1
    assert edges.value < 0.8


def test_chance_is_the_share_of_the_class_most_frequent_in_training(toy):
    train, test = toy(10), toy(8)
    train.labels = np.array([0, 1, 1, 2, 1, 1, 1, 1, 2, 0])
    test.labels = np.array([1, 1, 0, 0, 0, 0, 2, 2])
    assert trivial(train, test)[0].value == 0.25
