"""Machine code kept on disk, and what its callers may give it. What it computes: test_views_*."""

import subprocess
import sys

import numpy as np
import pytest

from saccade.data import compiled, kernels

NEEDS_NO_COMPILER = """
import sys
import torch
from saccade.core import View
from saccade.data.cpu import Maker
from saccade.nn.random import keys
from saccade.recipe import Normalize

maker = Maker([View(size=8)], Normalize())
draws, out = maker.draw(keys(0, 0, torch.arange(1))), torch.zeros(3 * 8 * 8)
maker.make(torch.zeros(3, 9, 9, dtype=torch.uint8), maker.boxes(draws, 0, 9, 9), draws, 0, out)
assert out.lt(-1).all()
print("numba" in sys.modules)
"""


def test_views_need_no_compiler_once_they_are_compiled():
    kernels.library()
    command = [sys.executable, "-c", NEEDS_NO_COMPILER]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def chances(dtype=np.float32):
    return np.array([1, 0], dtype)


def test_kernels_take_arrays_and_addresses_of_the_right_kind():
    keys, out = np.arange(3, dtype=np.uint64), np.zeros((3, 2), bool)
    kernels.draw_flips(keys, 3, chances(), 2, out)
    assert out.tolist() == [[True, False]] * 3
    again, own = np.zeros((3, 2), bool), chances()
    first, second, third = kernels.addresses(keys, own, again)
    kernels.draw_flips(first, 3, second, 2, third)
    assert again.tolist() == out.tolist()


@pytest.mark.parametrize(
    ("keys", "own"),
    [
        (np.arange(3), chances()),
        (np.arange(3, dtype=np.uint64), chances(np.float64)),
        (np.arange(6, dtype=np.uint64)[::2], chances()),
    ],
)
def test_arrays_of_another_kind_are_refused(keys, own):
    with pytest.raises(ValueError, match=r"draw_flips|contiguous"):
        kernels.draw_flips(keys, 3, own, 2, np.zeros((3, 2), bool))


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Two folders to keep machine code in, and a compiler that gives some bytes."""
    both = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(kernels, "_folders", lambda: both)
    monkeypatch.setattr(compiled, "machine_code", lambda: b"machine code")
    return both


def test_machine_code_is_kept_and_found_again(folders):
    assert kernels._kept() is None
    assert kernels._made() == b"machine code"
    assert [p.parent for p in folders[0].iterdir()] == [folders[0]]
    assert kernels._kept() == b"machine code"
    assert not folders[1].exists()


def test_damaged_machine_code_is_not_used(folders):
    kernels._made()
    (path,) = folders[0].iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert kernels._kept() is None
    path.write_bytes(whole[:-1] + b"?")
    assert kernels._kept() is None


def test_where_one_folder_cannot_be_written_the_next_is_taken(folders):
    folders[0].write_bytes(b"in the way")
    assert kernels._made() == b"machine code"
    assert kernels._kept() == b"machine code"
    assert len(list(folders[1].iterdir())) == 1


def test_where_nothing_can_be_written_it_is_compiled_every_time(folders):
    for folder in folders:
        folder.write_bytes(b"in the way")
    assert kernels._made() == b"machine code"
    assert kernels._kept() is None


def test_other_source_is_another_key(monkeypatch, tmp_path):
    own = kernels._key()
    kernels._key.cache_clear()
    for name in kernels.SOURCES:
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(kernels, "HERE", tmp_path)
    assert kernels._key() != own
    kernels._key.cache_clear()
