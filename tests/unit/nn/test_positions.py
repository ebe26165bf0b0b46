import math

import pytest
import torch

from saccade.nn.positions import sincos_2d


def test_every_entry_equals_the_formula_on_a_grid_that_is_not_square():
    table = sincos_2d((2, 3), 8)
    for row in range(2):
        for column in range(3):
            want = []
            for x in (column, row):  # the official code: column first
                angles = [x / 10000 ** (k / 2) for k in range(2)]
                want += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row * 3 + column].tolist() == pytest.approx(want, abs=1e-6)


def test_a_width_that_does_not_split_in_four_is_refused():
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        sincos_2d((2, 2), 6)


def test_rows_of_one_column_share_the_first_half():
    table = sincos_2d((4, 4), 16).unflatten(0, (4, 4))
    assert torch.equal(table[0, 2, :8], table[3, 2, :8])
    assert not torch.equal(table[0, 2, 8:], table[3, 2, 8:])
