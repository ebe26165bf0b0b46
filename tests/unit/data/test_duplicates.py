import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from saccade.data import duplicates
from saccade.data.duplicates import aligned, blank, groups, near, thumbnail


def field(seed, width=128, height=96):
    """A picture of smooth random colors."""
    colors = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=60)
    return Image.open(stream)


def smaller(picture):
    size = (round(picture.width * 0.7), round(picture.height * 0.7))
    return picture.resize(size, Image.Resampling.BILINEAR)


def cropped(picture):
    return picture.crop((0, 3, round(picture.width * 0.96), picture.height))


def thumbs(pictures):
    tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures]
    return np.stack([thumbnail(x) for x in tensors])


CHANGES = [encoded, smaller, cropped, lambda p: encoded(smaller(cropped(p)))]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change):
    own = [field(k) for k in range(30)]
    found = near(thumbs([*own, *(change(p) for p in own[:10])]))
    assert [pair[:2] for pair in found] == [(k, 30 + k) for k in range(10)]


def test_blocks_leave_no_pair_out(monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS", 4)
    monkeypatch.setattr(duplicates, "COLUMNS", 7)
    monkeypatch.setattr(duplicates, "PAIRS", 3)
    own = [field(k) for k in range(20)]
    found = near(thumbs(own + [encoded(p) for p in own]))
    assert [pair[:2] for pair in found] == [(k, 20 + k) for k in range(20)]


def test_a_crop_correlates_fully_with_what_it_was_cut_from():
    x = torch.from_numpy(thumbs([field(0)])).float()
    corner = torch.tensor([[[0.95, 0, -0.05], [0, 0.95, 0.05]]])  # left, and low
    grid = F.affine_grid(corner, [1, 1, 32, 32], align_corners=False)
    cut = F.grid_sample(x[:, None], grid, align_corners=False, padding_mode="border")[:, 0]
    direct = torch.corrcoef(torch.stack([x.flatten(), cut.flatten()]))[0, 1]
    assert aligned(x, cut).item() == pytest.approx(1, abs=1e-4)
    assert aligned(cut, x).item() == pytest.approx(1, abs=1e-4)
    assert direct < 0.99


def test_pictures_of_one_gray_match_nothing():
    flat = np.full((3, 32, 32), 100, dtype=np.uint8)
    assert blank(flat).all()
    assert near(flat) == []
    assert near(flat[:0]) == []


def test_thumbnails_of_wide_pixels_do_not_depend_on_their_unit():
    x = torch.rand(5, 40, 40)
    assert np.abs(thumbnail(x).astype(int) - thumbnail(300 * x - 20)).max() <= 1


def test_groups_join_what_pairs_chain():
    pairs = [(5, 9, 1.0), (0, 4, 1.0), (4, 7, 1.0), (1, 7, 1.0)]
    assert sorted(groups(pairs)) == [[0, 1, 4, 7], [5, 9]]
    assert groups([]) == []
