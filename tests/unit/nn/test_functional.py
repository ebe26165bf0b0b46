import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saccade.nn.functional import cosine_ramp, feature_std, knn_scores, rankme, similarity, take


def test_cosine_ramp_is_halfway_in_the_middle_and_reaches_both_ends():
    assert cosine_ramp(0.996, 1.0, 0.0) == pytest.approx(0.996)
    assert cosine_ramp(0.996, 1.0, 0.5) == pytest.approx(0.998)
    assert cosine_ramp(0.996, 1.0, 1.0) == 1.0
    assert cosine_ramp(0.0, 1.0, 1 / 3) == pytest.approx(0.25)


def test_similarity_keeps_float32_under_autocast():
    torch.manual_seed(0)
    a = torch.randn(4, 8)
    exact = (a.double() @ a.double().T).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a.T).dtype == torch.bfloat16
        torch.testing.assert_close(similarity(a, a), exact)


def test_take_picks_rows_of_each_sample():
    x, at = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    for i in range(2):
        for j in range(2):
            assert torch.equal(take(x, at)[i, j], x[i, at[i, j]])


def test_knn_scores_equal_votes_counted_in_loops():
    torch.manual_seed(0)
    query, bank = F.normalize(torch.randn(6, 4), dim=1), F.normalize(torch.randn(20, 4), dim=1)
    labels = torch.randint(3, (20,))
    got = knn_scores(query, bank, labels, classes=3, k=5, temperature=0.07)
    for i, q in enumerate(query):
        cosine = [float(q @ row) for row in bank]
        nearest = sorted(range(20), key=lambda j: -cosine[j])[:5]
        votes = [0.0, 0.0, 0.0]
        for j in nearest:
            votes[int(labels[j])] += math.exp(cosine[j] / 0.07)
        shares = got[i] / got[i].sum()
        assert shares.tolist() == pytest.approx([v / sum(votes) for v in votes], rel=1e-3)


def test_knn_scores_do_not_overflow_at_low_temperature():
    x = torch.eye(3)
    scores = knn_scores(x, x, torch.arange(3), classes=3, k=2, temperature=0.001)
    assert scores.argmax(1).tolist() == [0, 1, 2]
    assert scores.isfinite().all()


def test_more_neighbors_than_the_bank_holds_are_refused():
    x = torch.eye(3)
    with pytest.raises(ValueError, match="setting k: 4 neighbors of a bank of 3"):
        knn_scores(x, x, torch.arange(3), classes=3, k=4, temperature=0.1)


def test_feature_std_is_zero_when_collapsed_and_one_when_isotropic():
    torch.manual_seed(0)
    assert feature_std(torch.ones(10, 4)).item() == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.randn(4000, 64)).item() == pytest.approx(1, abs=0.01)


def test_rankme_counts_equal_directions():
    x = torch.zeros(12, 8)
    x[:3, :3] = torch.eye(3)
    assert rankme(x).item() == pytest.approx(3, rel=1e-5)
    assert rankme(torch.ones(12, 8)).item() == pytest.approx(1, rel=1e-3)


def test_rankme_equals_the_entropy_from_numpy():
    torch.manual_seed(0)
    x = torch.randn(20, 6) * torch.tensor([5.0, 3, 1, 1, 0.5, 0.1])
    p = np.linalg.svd(x.numpy(), compute_uv=False)
    p = p / p.sum()
    assert rankme(x).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
