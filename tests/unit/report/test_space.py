import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from saccade.report import space


def features(n=40, d=8, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_neighbors_are_those_of_scikit_learn_without_oneself():
    unit = features()
    cosine, near = space.others(unit, 5)
    reference = NearestNeighbors(metric="cosine").fit(unit.numpy())
    distance, rows = reference.kneighbors(n_neighbors=5)  # leaves each its own row out
    assert (near.numpy() == rows).all()
    assert cosine.numpy() == pytest.approx(1 - distance, abs=1e-6)


def test_copies_are_neighbors_but_nobody_is_its_own():
    unit = F.normalize(torch.ones(7, 3), dim=1)
    cosine, near = space.others(unit, 4)
    assert not (near == torch.arange(7)[:, None]).any()
    assert all(len(set(row)) == 4 for row in near.tolist())
    assert cosine.numpy() == pytest.approx(1)


def test_errors_are_the_surest_wrong_votes_of_the_others():
    unit, k, t = features(30), 20, 0.07
    y = torch.arange(30) % 3
    y[4] = -1  # without label: neither judged nor asked
    expected = []
    for i in range(30):
        near = sorted((j for j in range(30) if j not in (i, 4)), key=lambda j: -unit[i] @ unit[j])
        votes = [0.0, 0.0, 0.0]
        for j in near[:k]:
            votes[y[j]] += math.exp(float(unit[i] @ unit[j]) / t)
        said = int(np.argmax(votes))
        if i != 4 and said != y[i]:
            expected.append((votes[said] / sum(votes), i, said))
    expected = sorted(expected, reverse=True)[: space.ERRORS]
    found = space.errors(unit, y, 3)
    assert [(e.point, e.said) for e in found] == [(i, said) for _, i, said in expected]
    assert [e.share for e in found] == pytest.approx([share for share, _, _ in expected], rel=1e-4)


def test_pictures_without_labels_have_no_errors():
    assert space.errors(features(), torch.full((40,), -1), 0) == []


def test_principal_components_are_those_of_scikit_learn_up_to_sign():
    x = features(50, 6)
    found = space.principal(x, 3)
    reference = PCA(3).fit_transform(x.numpy())
    assert np.abs(found) == pytest.approx(np.abs(reference), abs=1e-5)


@pytest.mark.parametrize("projection", ["pca", "tsne"])
@pytest.mark.parametrize("n", [2, 12])
def test_maps_lie_within_the_unit_square(projection, n):
    xy = space.flattened(features(n), projection)
    assert xy.shape == (n, 2)
    assert xy.min() >= 0
    assert xy.max() <= 1
    assert (xy.max(0) - xy.min(0)).max() == pytest.approx(1)


def test_features_of_one_number_have_a_flat_map():
    assert space.flattened(torch.ones(3, 1), "pca").shape == (3, 2)


def test_tsne_keeps_clusters_apart():
    centers = torch.eye(3).repeat_interleave(12, 0)
    unit = F.normalize(centers + 0.05 * features(36, 3), dim=1)
    xy = space.flattened(unit, "tsne")
    nearest = NearestNeighbors(n_neighbors=1).fit(xy).kneighbors(return_distance=False)[:, 0]
    assert (nearest // 12 == np.arange(36) // 12).all()
