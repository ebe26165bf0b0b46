import json

import numpy as np
import pytest
import torch

from saccade.nn.palette import (
    color_loss,
    grid_palette,
    kmeans,
    lloyd,
    nearest,
    read_palette,
    seeds,
)
from saccade.nn.random import permutation


def points(n=200):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_nearest_color_is_that_of_a_loop():
    x, palette = points(30), points(40)[30:]
    found = nearest(x, palette)
    for i, pixel in enumerate(x.tolist()):
        far = [sum((a - b) ** 2 for a, b in zip(pixel, c, strict=True)) for c in palette.tolist()]
        assert found[i] == far.index(min(far))


def test_of_equally_near_colors_the_first_is_taken():
    palette = torch.tensor([[1.0, 0, 0], [0, 0, 0], [-1, 0, 0], [0, 0, 0]])
    x = torch.tensor([[0.5, 0, 0], [-0.5, 0, 0], [0, 0, 0]])
    assert nearest(x, palette).tolist() == [0, 1, 1]


def test_near_colors_are_told_apart_far_from_zero():
    palette = torch.full((2, 3), 0.9)
    palette[1] += 1e-5
    assert nearest(palette.flip(0), palette).tolist() == [1, 0]


def test_the_grid_has_eight_steps_of_each_of_red_green_and_blue():
    grid = grid_palette(512)
    assert grid.shape == (512, 3)
    assert len(set(map(tuple, grid.tolist()))) == 512
    for channel in grid.T:
        torch.testing.assert_close(channel.unique(), torch.linspace(-1, 1, 8))
    with pytest.raises(ValueError, match="500 colors are no grid"):
        grid_palette(500)


def test_lloyd_ends_where_that_of_scikit_learn_does():
    from sklearn.cluster import KMeans

    x, start = points().double(), points().double()[:8]
    theirs = KMeans(8, init=start.numpy(), n_init=1, max_iter=100, tol=0, algorithm="lloyd")
    theirs.fit(x.numpy())
    torch.testing.assert_close(lloyd(x, start, 100), torch.from_numpy(theirs.cluster_centers_))


def test_kmeans_is_as_good_as_that_of_scikit_learn():
    from sklearn.cluster import KMeans

    x = points(400)
    ours = kmeans(x, 8)
    spread = torch.cdist(x, ours).amin(1).square().sum().item()
    theirs = KMeans(8, n_init=10, random_state=0).fit(x.numpy())
    assert spread < 1.1 * theirs.inertia_
    assert torch.equal(kmeans(x, 8), ours)
    assert ours.abs().max() <= 1  # as the points are


def test_seeds_of_separate_clusters_hit_each_once():
    middles = torch.tensor([[-0.9, -0.9, -0.9], [0.9, 0.9, 0.9], [-0.9, 0.9, 0], [0.9, -0.9, 0]])
    x = (middles[:, None] + 0.001 * points(20)).flatten(0, 1).double()
    for seed in range(5):
        assert sorted(nearest(seeds(x, 4, seed), middles).tolist()) == [0, 1, 2, 3]


def test_fewer_colors_than_wanted_leave_doubles_and_lose_nothing():
    x = torch.tensor([[-1.0, -1, -1], [1, 1, 1]]).repeat(10, 1)
    palette = kmeans(x, 8)
    torch.testing.assert_close(palette[nearest(x, palette)], x)


def test_a_large_sample_is_cut_to_the_first_of_a_fixed_order(monkeypatch):
    monkeypatch.setattr("saccade.nn.palette.SAMPLE", 50)
    x = points()
    kept = x[permutation(200, 0, 0)[:50]]
    monkeypatch.setattr("saccade.nn.palette.STEPS", 0)
    found = kmeans(x, 8)
    assert (torch.cdist(found, kept).amin(1) < 1e-6).all()


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_of_colors_is_that_of_loops(masked):
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 6, 5, generator=g)
    tokens = torch.randint(5, (3, 2, 3), generator=g)
    hidden = torch.rand(3, 2, 3, generator=g) < 0.5
    hidden[2] = False  # a picture without a hidden pixel counts as zero
    total = 0.0
    for b in range(3):
        costs = []
        for n in range(6):
            s = scores[b, n].double().exp()
            if not masked or hidden[b].flatten()[n]:
                costs.append(-float((s[tokens[b].flatten()[n]] / s.sum()).log()))
        total += sum(costs) / len(costs) if costs else 0.0
    found = color_loss(scores, tokens, hidden if masked else None)
    assert found.item() == pytest.approx(total / 3, rel=1e-5)


def test_released_colors_come_from_npy_npz_and_json(tmp_path):
    colors = points(16).numpy()
    np.save(tmp_path / "a.npy", colors)
    np.savez(tmp_path / "a.npz", colors)
    (tmp_path / "a.json").write_text(json.dumps({"clusters": colors.tolist()}))
    for name in ("a.npy", "a.npz", "a.json"):
        torch.testing.assert_close(read_palette(tmp_path / name, 16), torch.from_numpy(colors))


def test_files_that_hold_no_colors_are_told_apart(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"run": "me"}]), allow_pickle=True)
    np.save(tmp_path / "few.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "bytes.npy", np.full((16, 3), 255, np.float32))
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "text.npy").write_text("hello")
    for name, said in {
        "pickled.npy": "no plain array",
        "few.npy": r"\[4, 3\].*not \[16, 3\]",
        "bytes.npy": "leave",
        "no.json": "no plain array",
        "text.npy": "no plain array",
        "none.npy": "not there",
    }.items():
        with pytest.raises(ValueError, match=said):
            read_palette(tmp_path / name, 16)
