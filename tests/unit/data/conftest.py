"""What the data tests share: a dirty folder, random arrays, a folder of plain colors."""

from __future__ import annotations

import dirty
import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.arrays import Arrays


@pytest.fixture
def dirty_folder(tmp_path):
    """The folder, and what is wrong with each unreadable entry."""
    bad = dirty.make(tmp_path / "dirty")
    return tmp_path / "dirty", bad


@pytest.fixture
def noise():
    """Builds n random pictures in memory, labeled 0..4 in turn."""

    def build(n, size=32, channels=3):
        g = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=g)
        labels = np.arange(n, dtype=np.int64) % 5
        return Arrays("noise", pixels, labels, tuple("abcde"), "train", channels)

    return build


@pytest.fixture
def save():
    """Saves a picture of one color, making its folder."""

    def at(path, color=(10, 20, 30), size=(8, 6)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(path)
        return path

    return at
