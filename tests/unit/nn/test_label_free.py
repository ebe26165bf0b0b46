import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saccade.nn.functional import alignment, alpha_req, lidar, rankme, uniformity


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spectrum(values, n=400):
    """Centered features whose covariance has these eigenvalues, up to a factor."""
    q = draws(n, len(values)).double()
    q = torch.linalg.qr(q - q.mean(0))[0]
    turn = torch.linalg.qr(draws(len(values), len(values), seed=1).double())[0]
    return ((q * torch.tensor(values, dtype=torch.double).sqrt()) @ turn).float()


def test_rankme_equals_its_formula_in_numpy():
    x = draws(50, 8) * torch.arange(1, 9)
    s = np.linalg.svd(x.numpy(), compute_uv=False)
    p = s / np.abs(s).sum() + 1e-7
    assert rankme(x).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("d", [8, 64, 150])
def test_alpha_of_a_power_law_is_its_exponent(alpha, d):
    x = spectrum([i**-alpha for i in range(1, d + 1)])
    assert alpha_req(x).item() == pytest.approx(alpha, abs=0.01)


def test_alpha_equals_numpys_weighted_fit():
    x = draws(300, 60) * torch.linspace(1, 5, 60)
    values = np.sort(np.linalg.eigvalsh(np.cov(x.double().numpy().T)))[::-1]
    i = np.arange(6, 61)
    slope, _ = np.polyfit(np.log(i), np.log(values[5:]), 1, w=1 / np.sqrt(i))
    assert alpha_req(x).item() == pytest.approx(-slope, rel=1e-4)


def test_lidar_equals_its_formula_with_a_matrix_root():
    x = draws(30, 6, 5) + 2 * draws(30, 1, 5, seed=1) * torch.tensor([1.0, 1, 0.3, 0.1, 0])
    n, q, d = x.shape
    between, within = np.zeros((d, d)), np.zeros((d, d))
    mu = x.double().mean((0, 1)).numpy()
    for i in range(n):
        own = x[i].double().mean(0).numpy()
        between += np.outer(own - mu, own - mu) / (n - 1)
        for v in range(q):
            gap = x[i, v].double().numpy() - own
            within += np.outer(gap, gap) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within + 1e-4 * np.eye(d))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigen = np.linalg.eigvalsh(root @ between @ root).clip(0)
    p = eigen / eigen.sum() + 1e-8
    assert lidar(x).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_lidar_does_not_count_directions_that_tell_only_views_apart():
    pictures = torch.zeros(200, 1, 6)
    pictures[..., :2] = draws(200, 1, 2)
    x = pictures + 0.01 * draws(200, 8, 6, seed=1)
    x[..., 4:] += 5 * draws(200, 8, 2, seed=2)
    assert lidar(x).item() == pytest.approx(2, abs=0.05)


def test_uniformity_written_as_loops():
    u = F.normalize(draws(12, 4), dim=1)
    pairs = [
        math.exp(-2 * float((u[i] - u[j]).square().sum())) for i in range(12) for j in range(i)
    ]
    assert uniformity(3 * u).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-4)


def test_collapse_has_uniformity_and_alignment_zero():
    x = torch.ones(9, 4)
    assert uniformity(x).item() == pytest.approx(0, abs=1e-5)
    assert alignment(x, 2 * x).item() == pytest.approx(0, abs=1e-6)


def test_opposite_views_are_four_apart():
    x = draws(9, 4)
    assert alignment(x, -x).item() == pytest.approx(4, rel=1e-5)
