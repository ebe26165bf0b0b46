import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from saccade.drawing import patches


def test_the_mask_is_the_smallest_set_that_holds_the_mass():
    rows = torch.rand(5, 30, generator=torch.Generator().manual_seed(0)) ** 3
    masks = patches.mass_mask(rows, 0.6)
    for row, mask in zip((rows / rows.sum(1, keepdim=True)).tolist(), masks.tolist(), strict=True):
        held, chosen = 0.0, set()
        while held < 0.6:
            best = max((i for i in range(30) if i not in chosen), key=lambda i: row[i])
            chosen.add(best)
            held += row[best]
        assert chosen == {i for i in range(30) if mask[i]}


def test_of_equal_cells_the_first_ones_are_taken():
    assert patches.mass_mask(torch.ones(10), 0.6).tolist() == [True] * 6 + [False] * 4


def test_components_equal_those_of_scikit_learn_up_to_sign():
    g = torch.Generator().manual_seed(0)
    for shape in ((40, 9), (8, 20)):  # more rows than columns, and fewer
        x = torch.randn(*shape, generator=g) * torch.arange(1, shape[1] + 1)
        theirs = PCA(3).fit_transform(x.double().numpy())
        ours = patches.principal(x).numpy()
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-4, atol=1e-4)


def test_missing_components_are_zero():
    x = torch.randn(2, 5)
    assert torch.equal(patches.principal(x)[:, 2], torch.zeros(2))


def test_colors_span_the_unit_range_of_all_pictures_together():
    y = torch.linspace(-5, 5, 1001)[:, None].expand(-1, 3)
    colors = patches.colored(y)
    assert colors.min() == 0
    assert colors.max() == 1
    assert colors[500, 0].item() == pytest.approx(0.5)


def test_nearest_cells_equal_a_loop():
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(n, 6, generator=g) for n in (4, 9)]
    query = maps[0][2]
    cosine = lambda a, b: float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))  # noqa: E731
    every = [
        (cosine(query, x), i, k)
        for i, m in enumerate(maps)
        for k, x in enumerate(m)
        if (i, k) != (0, 2)
    ]
    expected = [(i, k) for _, i, k in sorted(every, reverse=True)[:5]]
    found = patches.nearest(query, maps, 5, without=2)
    assert [f[:2] for f in found] == expected
    assert [f[2] for f in found] == pytest.approx(sorted((c for c, *_ in every), reverse=True)[:5])


def test_a_point_falls_into_the_cell_that_shows_it():
    grid = (3, 7)  # a wide picture of 70 x 30 pixels
    for y in range(30):
        for x in range(70):
            cell = patches.cell_at((x + 0.5) / 70, (y + 0.5) / 30, grid)
            assert cell == (y // 10) * 7 + x // 10
            left, top, right, bottom = patches.box_of(cell, grid)
            assert left <= (x + 0.5) / 70 <= right
            assert top <= (y + 0.5) / 30 <= bottom
    assert patches.cell_at(1.0, 1.0, grid) == 20


def test_entropy_is_0_for_one_cell_and_1_for_all():
    rows = torch.stack([torch.eye(8)[3], torch.full((8,), 5.0)])
    assert patches.entropy(rows).tolist() == pytest.approx([0.0, 1.0])


def test_foreground_is_the_side_that_touches_the_border_less():
    edge = patches.border((6, 6))
    assert int(edge.sum()) == 20
    middle = (~edge).float()
    for sign in (1.0, -1.0):
        assert torch.equal(patches.foreground(sign * middle, edge), ~edge)


def test_a_foreground_of_few_cells_is_all_cells():
    first = torch.zeros(36)
    first[14] = 1.0
    assert patches.foreground(first, patches.border((6, 6)), least=8).all()
