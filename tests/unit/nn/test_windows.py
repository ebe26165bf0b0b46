"""Attention that cells of a shifted, padded map get, against loops over windows and cells."""

import torch

from saccade.nn.windows import received, window_cells


def test_what_a_cell_receives_is_the_mean_over_heads_and_real_queries_of_its_window():
    torch.manual_seed(0)
    grid, window, shift = (5, 6), (4, 4), (2, 2)
    cells = window_cells(grid, window, shift)
    maps, heads = 3, 2
    weights = torch.rand(maps * len(cells), heads, 16, 16)
    ours = received(weights, cells)
    assert ours.shape == (maps, 30)
    found = torch.full((maps, 30), torch.nan)
    for m in range(maps):
        for w, places in enumerate(cells.tolist()):
            asking = [q for q, cell in enumerate(places) if cell >= 0]
            for slot, cell in enumerate(places):
                if cell >= 0:
                    each = [weights[m * len(cells) + w, h, q, slot] for h in (0, 1) for q in asking]
                    found[m, cell] = sum(each) / len(each)
    torch.testing.assert_close(ours, found)


def test_every_cell_of_a_shifted_map_is_in_one_window():
    cells = window_cells((5, 6), (4, 4), (2, 2))
    assert sorted(cells[cells >= 0].tolist()) == list(range(30))
