import itertools
import math

import pytest
import torch

from saccade.nn.pixels import bin_distances, cells, centers

WHOLE = (0.0, 0.0, 1.0, 1.0)


def apart(a, b, flip_a=False, flip_b=False, grid=(7, 7)):
    boxes = (torch.tensor([a]), torch.tensor([b]))
    return bin_distances(boxes, (torch.tensor([flip_a]), torch.tensor([flip_b])), grid)[0]


@pytest.mark.parametrize(("threshold", "pairs"), [(0.7, 49), (0.71, 217), (1.01, 361)])
def test_identical_crops_have_themselves_then_neighbors_then_diagonals(threshold, pairs):
    near = apart(WHOLE, WHOLE) < threshold
    assert near.sum() == pairs
    assert near.diagonal().all()


def test_a_mirrored_crop_meets_column_c_at_column_6_minus_c():
    near = (apart(WHOLE, WHOLE, flip_b=True) < 0.7).unflatten(1, (7, 7)).unflatten(0, (7, 7))
    assert near.nonzero().tolist() == [[r, c, r, 6 - c] for r in range(7) for c in range(7)]
    assert ((apart(WHOLE, WHOLE, True, True) < 0.7) == torch.eye(49, dtype=torch.bool)).all()


@pytest.mark.parametrize(
    ("a", "b", "pairs"),
    [
        (WHOLE, (0.25, 0.25, 0.75, 0.75), 121),
        ((0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0), 0),
        ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), 7),  # two halves share an edge
        ((0.0, 0.0, 0.25, 1.0), (0.0, 0.0, 0.25, 1.0), 203),  # narrow cells
    ],
)
def test_number_of_positive_pairs_of_known_crops(a, b, pairs):
    assert (apart(a, b) < 0.7).sum() == pairs


def test_equals_distances_written_as_loops():
    a, b, rows, columns = (0.1, 0.0, 0.7, 0.5), (0.3, 0.2, 0.9, 1.0), 2, 3
    got = apart(a, b, False, True, (rows, columns))
    diagonal = max(math.hypot((c[2] - c[0]) / columns, (c[3] - c[1]) / rows) for c in (a, b))
    spots = list(itertools.product(range(rows), range(columns)))
    for (i, (r, c)), (j, (s, d)) in itertools.product(enumerate(spots), enumerate(spots)):
        x = a[0] + (c + 0.5) * (a[2] - a[0]) / columns
        y = a[1] + (r + 0.5) * (a[3] - a[1]) / rows
        other_x = b[2] - (d + 0.5) * (b[2] - b[0]) / columns  # mirrored
        other_y = b[1] + (s + 0.5) * (b[3] - b[1]) / rows
        want = math.hypot(x - other_x, y - other_y) / diagonal
        assert got[i, j].item() == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_swapping_the_views_transposes():
    a, b = (0.1, 0.0, 0.7, 0.5), (0.3, 0.2, 0.9, 1.0)
    torch.testing.assert_close(apart(a, b, False, True), apart(b, a, True, False).T)


def test_half_a_diagonal_is_exactly_a_half():
    """Cells of 3/8 x 4/8, moved by half of that: a threshold of .5 is reached, not passed."""
    d = apart((0.0, 0.0, 0.375, 0.5), (0.1875, 0.25, 0.5625, 0.75), grid=(1, 1))
    assert d.tolist() == [[0.5]]


def test_every_picture_has_its_own_boxes():
    boxes = torch.tensor([WHOLE, (0.0, 0.0, 0.25, 1.0)])
    flips = torch.tensor([False, False])
    near = bin_distances((boxes, boxes), (flips, flips), (7, 7)) < 0.7
    assert near.sum((1, 2)).tolist() == [49, 203]


def test_centers_lie_in_the_middle_of_cells():
    x, y = centers(torch.tensor([[0.0, 0.5, 1.0, 1.0]]), torch.tensor([True]), (2, 4))
    assert x.tolist() == [[0.875, 0.625, 0.375, 0.125]]
    assert y.tolist() == [[0.625, 0.875]]


def test_cells_are_unit_vectors_in_raster_order():
    x = torch.randn(2, 5, 3, 4)
    z = cells(x)
    torch.testing.assert_close(z[1, 6], x[1, :, 1, 2] / x[1, :, 1, 2].norm())
