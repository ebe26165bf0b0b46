"""Figures of the protocols are scikit-learn's on the same features."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from saccade.evals import linear, logistic
from saccade.evals.features import Features
from saccade.evals.knn import neighbors, vote
from saccade.evals.retrieval import average_precisions
from saccade.recipe import Optim, Schedule


def blobs(n, seed, classes=6, dim=12, noise=1.5):
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=draws)
    return centers[y] + noise * torch.randn(n, dim, generator=draws), y


@pytest.mark.parametrize(("k", "t"), [(1, 0.07), (10, 0.07), (20, 0.07), (100, 0.07), (200, 0.1)])
def test_knn_predicts_the_same_class_for_every_picture(k, t):
    (bank, y), (query, _) = blobs(2000, 0), blobs(500, 1)
    theirs = KNeighborsClassifier(
        k, weights=lambda d: np.exp((1 - d) / t), metric="cosine", algorithm="brute"
    ).fit(bank.double().numpy(), y.numpy())
    ours = vote(neighbors(query, bank, k), y, 6, k, t).argmax(1)
    assert (ours.numpy() == theirs.predict(query.double().numpy())).all()


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_regression_is_at_the_same_optimum(c):
    (x, y), (query, truth) = blobs(400, 0), blobs(1000, 1)
    scale = StandardScaler().fit(x.double().numpy())
    theirs = LogisticRegression(C=c, tol=1e-9, max_iter=5000)
    theirs.fit(scale.transform(x.double().numpy()), y.numpy())
    found = logistic.fit(x, y, 6, c)(query).softmax(1).numpy()
    z = scale.transform(query.double().numpy())
    assert np.abs(found - theirs.predict_proba(z)).max() < 1e-4
    gap = (found.argmax(1) == truth.numpy()).mean() - theirs.score(z, truth.numpy())
    assert abs(gap) <= 0.002


def test_a_linear_probe_that_has_converged_is_within_02_points_of_it():
    """SGD over the whole set in every step: the probes' own loop, at the loss's minimum."""
    (x, y), (query, truth) = blobs(400, 0), blobs(4000, 1)
    schedule = Schedule(shape="constant")
    probe = linear.Probe(
        optim=Optim(lr=0.5, lr_rule="none", weight_decay=0.0, schedule=schedule),
        epochs=1500,
        batch_size=400,
    )
    head = linear.fit(probe, Features(x, y, torch.arange(400)), 6, seed=0)
    theirs = LogisticRegression(C=np.inf, tol=1e-9, max_iter=5000).fit(x.numpy(), y.numpy())
    with torch.no_grad():
        ours = (head(query).argmax(1) == truth).float().mean().item()
    assert abs(ours - theirs.score(query.numpy(), truth.numpy())) <= 0.002


def test_retrieval_is_average_precision():
    (bank, y), (query, truth) = blobs(300, 0), blobs(20, 1)
    found = average_precisions(query, truth, bank, y)
    cosine = F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T
    for i in range(20):
        expected = average_precision_score((y == truth[i]).numpy(), cosine[i].numpy())
        assert found[i].item() == pytest.approx(expected, abs=1e-6)


def test_multi_label_precision_with_and_without_weights():
    draws = np.random.default_rng(0)
    scores, truth = draws.random((80, 4)), draws.random((80, 4)) < 0.3
    for weight in (np.ones(80), draws.integers(0, 4, 80).astype(float)):
        found = logistic.average_precision(scores, truth, weight)
        for c in range(4):
            expected = average_precision_score(truth[:, c], scores[:, c], sample_weight=weight)
            assert found[c] == pytest.approx(expected, abs=1e-9)


def test_multi_label_classifiers_are_scikit_learns():
    x, _ = blobs(300, 0)
    truth = torch.stack([x[:, 0] + x[:, 1] > 0.3, x[:, 2] > 0, x[:, 3] < 0.5], 1)
    x = x + 2 * torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    ours = logistic.fit_many(x[:200], truth[:200])(x[200:]).sigmoid().numpy()
    scale = StandardScaler().fit(x[:200].double().numpy())
    for c in range(3):
        theirs = LogisticRegression(tol=1e-9, max_iter=5000)
        theirs.fit(scale.transform(x[:200].double().numpy()), truth[:200, c].numpy())
        expected = theirs.predict_proba(scale.transform(x[200:].double().numpy()))[:, 1]
        assert np.abs(ours[:, c] - expected).max() < 1e-4
