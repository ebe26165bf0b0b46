"""Deep metric transfer's propagation against dense closed forms and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict
from scipy.sparse import csr_array
from sklearn.datasets import make_moons
from sklearn.manifold import spectral_embedding
from sklearn.neighbors import NearestNeighbors
from sklearn.semi_supervised import LabelSpreading

from saccade.nn import propagation


def features(n=60, d=6, classes=3, spread=0.4, seed=0):
    """Unit vectors about one direction for each class, and their classes."""
    g = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(classes, d, generator=g), dim=1)
    y = torch.arange(n) % classes
    return F.normalize(centers[y] + spread * torch.randn(n, d, generator=g), dim=1), y


def few(y, each):
    """The first labels of every class; -1 for the others."""
    known = torch.full_like(y, -1)
    for c in y.unique():
        rows = (y == c).nonzero()[:each, 0]
        known[rows] = c
    return known


def by_hand(x, labels, classes, k=20, scale=0.2):
    """The sheet's steps, dense: pseudo-inverse of the Laplacian times the prior."""
    x, labels = x.double().numpy(), labels.numpy()
    n, cosine = len(x), (x @ x.T)
    w = np.zeros((n, n))
    for i in range(n):
        for j in np.argsort(-cosine[i])[:k]:
            w[i, j] = np.exp(-(1 - cosine[i, j]) / scale)
    w = (w + w.T) / 2
    d = w.sum(1)
    laplacian = np.eye(n) - w / np.sqrt(np.outer(d, d))
    columns = []
    for c in range(classes):
        u = np.where(labels == c, 1.0, np.where(labels >= 0, -1.0, 0.0))
        p, m = d * (abs(u) + u) / 2, d * (abs(u) - u) / 2
        r = p.sum() / m.sum()
        column = np.sqrt(p / r) - np.sqrt(m * r)
        columns.append(column / np.linalg.norm(column))
    scores = np.linalg.pinv(laplacian, rcond=1e-9) @ np.stack(columns, 1)
    return scores / np.linalg.norm(scores, axis=0) * np.sqrt(n)


def test_all_eigenvectors_give_the_dense_closed_form():
    x, y = features()
    known = few(y, 2)
    weights = propagation.graph(x, 20, 0.2)
    scores = propagation.solve(weights, known.numpy(), 3, vectors=60)
    np.testing.assert_allclose(scores, by_hand(x, known, 3), atol=1e-3)
    label, confidence = propagation.cut(x, known, classes=3, vectors=60)
    top = np.sort(scores, 1)
    np.testing.assert_allclose(
        confidence.numpy(), 1 - np.exp(-(top[:, -1] - top[:, -2])), atol=1e-9
    )
    assert label.tolist() == scores.argmax(1).tolist()


def test_the_graph_is_scikit_learns():
    x, _ = features()
    weights = propagation.graph(x, 5, 0.2)
    found = (
        NearestNeighbors(n_neighbors=5, metric="cosine")
        .fit(x.numpy())
        .kneighbors_graph(x.numpy(), mode="distance")
    )
    near = found.toarray() > 0
    near |= np.eye(len(x), dtype=bool)  # the picture itself, at distance 0
    cosine = (x @ x.T).double().numpy()
    one_way = np.where(near, np.exp(-(1 - cosine) / 0.2), 0)
    np.testing.assert_allclose(weights.toarray(), (one_way + one_way.T) / 2, atol=1e-6)
    assert (near.sum(1) == 5).all()
    assert weights.diagonal() == pytest.approx(1.0, abs=1e-5)


def test_eigenvectors_are_scikit_learns_and_the_constant_one_is_left_out(monkeypatch):
    x, _ = features(spread=1.0)
    weights = propagation.graph(x, 20, 0.2)
    degree = np.asarray(weights.sum(1)).ravel()
    values, vectors = propagation.smallest(weights, degree, 5)
    monkeypatch.setattr(propagation, "DENSE", 10)
    other_values, other = propagation.smallest(weights, degree, 5)
    np.testing.assert_allclose(np.sort(values), np.sort(other_values), atol=1e-4)
    np.testing.assert_allclose(vectors @ vectors.T, other @ other.T, atol=1e-2)
    assert np.abs(np.sqrt(degree) @ vectors).max() < 1e-6
    dense = np.eye(60) - weights.toarray() / np.sqrt(np.outer(degree, degree))
    low = np.linalg.eigvalsh(dense)
    assert low[0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(np.sort(values), low[1:6], atol=1e-9)
    # scikit-learn drops self-loops, which only shifts a graph whose loops are alike
    plain = weights.toarray()
    np.fill_diagonal(plain, 0)
    embedded = spectral_embedding(plain, n_components=1, random_state=0)[:, 0]
    degree = plain.sum(1)
    _, first = propagation.smallest(csr_array(plain), degree, 1)
    mine = first[:, 0] / np.sqrt(degree)
    assert abs(np.corrcoef(mine, embedded)[0, 1]) > 0.999


@pytest.mark.parametrize("algorithm", [propagation.cut, propagation.vote])
def test_a_perfect_metric_labels_everything_right_and_equally_surely(algorithm):
    y = torch.arange(40) % 2
    x = F.one_hot(y, 2).float()
    label, confidence = algorithm(x, few(y, 1), classes=2, neighbors=20)
    assert torch.equal(label, y)
    assert confidence.min().item() == pytest.approx(confidence.max().item(), abs=1e-4)
    assert confidence.min() > 0.8


def test_scaling_weights_changes_nothing_and_permuting_pictures_permutes_scores():
    x, y = features()
    known = few(y, 2)
    weights = propagation.graph(x, 10, 0.2)
    scores = propagation.solve(weights, known.numpy(), 3, 60)
    np.testing.assert_allclose(
        propagation.solve(7 * weights, known.numpy(), 3, 60), scores, atol=1e-6
    )
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    turned = propagation.solve(propagation.graph(x[order], 10, 0.2), known[order].numpy(), 3, 60)
    np.testing.assert_allclose(turned, scores[order.numpy()], atol=1e-4)


def test_columns_have_the_same_length_so_that_no_class_swallows_the_rest():
    x, y = features(n=90, spread=0.8)
    known = few(y, 3)
    known[y == 0] = torch.where(torch.arange(30) < 20, 0, -1)  # many labels of one class
    scores = propagation.solve(propagation.graph(x, 20, 0.2), known.numpy(), 3, 90)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), np.sqrt(90))
    shares = np.bincount(scores.argmax(1), minlength=3) / 90
    assert shares.max() < 0.6


def test_confidence_lies_within_0_and_1_and_ties_have_none():
    x, y = features(spread=1.0)
    _, confidence = propagation.cut(x, few(y, 1), classes=3)
    assert ((confidence >= 0) & (confidence < 1)).all()
    mirrored = F.normalize(torch.tensor([[1.0, 0.1], [1, -0.1], [1, 0]]), dim=1)
    _, confidence = propagation.cut(mirrored, torch.tensor([0, 1, -1]), classes=2, neighbors=3)
    assert confidence[2].item() == pytest.approx(0, abs=1e-6)


def test_the_surest_guesses_are_better_than_the_others():
    x, y = features(n=300, d=4, spread=0.7)
    known = few(y, 4)
    label, confidence = propagation.cut(x, known, classes=3)
    right, unseen = label == y, known < 0
    order = confidence[unseen].argsort(descending=True)
    surest = right[unseen][order[: len(order) // 5]].float().mean()
    assert surest > right[unseen].float().mean() + 0.1


def moons(n, noise, seed=0):
    """Two arcs; a third axis makes them directions."""
    points, y = make_moons(n, noise=noise, random_state=seed)
    x = torch.tensor(np.c_[points, np.ones(n)], dtype=torch.float)
    return F.normalize(x - torch.tensor([0.5, 0.25, 0.0]), dim=1), torch.tensor(y)


def test_the_cut_beats_the_vote_with_few_labels_and_scikit_learn_agrees_with_it():
    x, y = moons(400, 0.06)
    known = few(y, 2)
    unseen = known < 0
    cut, vote = (
        (algorithm(x, known, classes=2)[0] == y)[unseen].float().mean().item()
        for algorithm in (propagation.cut, propagation.vote)
    )
    spreading = LabelSpreading(kernel="knn", n_neighbors=20, alpha=0.99, max_iter=1000)
    theirs = torch.tensor(spreading.fit(x.numpy(), known.numpy()).transduction_)
    assert cut > vote + 0.05
    assert (propagation.cut(x, known, classes=2)[0] == theirs).float().mean() > 0.9


def test_the_vote_beats_the_cut_with_many_labels_of_a_noisy_metric():
    gains = {}
    for each in (2, 50):
        gains[each] = []
        for seed in range(4):
            x, y = moons(400, 0.25, seed)
            known = few(y, each)
            cut, vote = (
                (algorithm(x, known, classes=2)[0] == y)[known < 0].float().mean().item()
                for algorithm in (propagation.cut, propagation.vote)
            )
            gains[each].append(cut - vote)
    assert np.mean(gains[2]) > 0
    assert np.mean(gains[50]) < -0.02


def test_a_graph_in_three_parts_has_an_answer_though_three_eigenvalues_are_zero():
    y = torch.arange(30) % 3
    weights = propagation.graph(F.one_hot(y, 3).float(), 10, 0.2)
    degree = np.asarray(weights.sum(1)).ravel()
    values, _ = propagation.smallest(weights, degree, 29)
    assert (np.abs(values) < 1e-9).sum() == 2  # the third belongs to the constant one
    scores = propagation.solve(weights, few(y, 1).numpy(), 3, 30)
    assert scores.argmax(1).tolist() == y.tolist()


def test_the_vote_is_lightlys():
    x, y = features(n=80, spread=1.0)
    known = few(y, 8)
    label, confidence = propagation.vote(x, known, classes=3, neighbors=10)
    bank = known >= 0
    want = knn_predict(x, x[bank].T, known[bank], num_classes=3, knn_k=10, knn_t=0.1)
    assert torch.equal(label, want[:, 0])
    for i in (0, 7):
        cosine, at = (x[i] @ x[bank].T).topk(10)
        votes = torch.zeros(3).index_add(0, known[bank][at], (cosine / 0.1).exp())
        assert confidence[i].item() == pytest.approx((votes / votes.sum()).max().item(), rel=1e-4)


def test_a_class_without_labels_is_refused():
    x, y = features()
    with pytest.raises(ValueError, match="class 2 or all others have no label"):
        propagation.cut(x, few(y.clamp(max=1), 2), classes=3)
