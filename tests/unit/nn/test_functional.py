import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saccade.nn import functional
from saccade.nn.functional import (
    cosine_ramp,
    cross_views,
    encode,
    epoch_ramp,
    feature_std,
    knn_scores,
    rankme,
    similarity,
    sinkhorn,
    take,
)


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


def balanced(scores, epsilon, steps):
    """Sinkhorn as the paper writes it, in double precision: K x B, rows, then columns."""
    q = (scores.double() / epsilon).exp().T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(steps):
        for row in range(k):
            q[row] /= q[row].sum() * k
        for column in range(b):
            q[:, column] /= q[:, column].sum() * b
    return (q * b).T.float()


@pytest.mark.parametrize(("epsilon", "steps"), [(0.05, 3), (0.5, 1), (0.2, 10)])
def test_sinkhorn_equals_the_papers_loops(epsilon, steps):
    torch.manual_seed(0)
    scores = 2 * torch.rand(7, 4) - 1
    want = balanced(scores, epsilon, steps)
    torch.testing.assert_close(sinkhorn(scores, epsilon, steps), want, atol=1e-6, rtol=1e-4)


def test_sinkhorn_gives_every_sample_weight_one_and_prototypes_equal_weight_in_the_limit():
    torch.manual_seed(0)
    scores = 2 * torch.rand(40, 8) - 1
    codes, limit = sinkhorn(scores, 0.2), sinkhorn(scores, 0.2, 200)
    torch.testing.assert_close(codes.sum(1), torch.ones(40))
    torch.testing.assert_close(limit.sum(1), torch.ones(40))
    torch.testing.assert_close(limit.sum(0), torch.full((8,), 5.0))
    assert codes.sum(0).min() > 5 / 1.4
    assert codes.sum(0).max() < 5 * 1.4


def test_sinkhorn_of_constant_scores_is_uniform():
    torch.testing.assert_close(sinkhorn(torch.full((6, 4), 0.3)), torch.full((6, 4), 0.25))


def test_sinkhorn_of_no_samples_is_empty():
    assert sinkhorn(torch.empty(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("epochs", "want"),
    [(4, [0.04, 0.05, 0.06, 0.07, 0.07]), (1, [0.04, 0.07, 0.07]), (0, [0.07, 0.07])],
)
def test_a_ramp_arrives_at_the_last_of_its_epochs(epochs, want):
    got = [epoch_ramp(0.04, 0.07, e, epochs) for e in range(len(want))]
    assert got == pytest.approx(want)


def test_sinkhorn_ignores_a_constant_of_a_prototype_but_not_of_a_sample():
    torch.manual_seed(0)
    scores = 2 * torch.rand(12, 5) - 1
    want = sinkhorn(scores)
    torch.testing.assert_close(sinkhorn(scores + 0.7), want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sinkhorn(scores + torch.rand(5)), want, atol=1e-5, rtol=1e-4)
    other = scores + torch.rand(12, 1)
    assert (sinkhorn(other) - want).abs().max() > 0.1
    torch.testing.assert_close(
        sinkhorn(other, 0.3, 500), sinkhorn(scores, 0.3, 500), atol=1e-4, rtol=0
    )


def test_sinkhorn_turns_hard_and_balanced_with_small_epsilon_and_uniform_with_large():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.7, 0.6], [0.6, 0.6]])  # all like the first
    hard = sinkhorn(scores, 0.02, 300)
    torch.testing.assert_close(hard, torch.eye(2)[[0, 0, 1, 1]], atol=1e-3, rtol=0)
    torch.testing.assert_close(sinkhorn(scores, 1000.0), torch.full((4, 2), 0.5), atol=1e-3, rtol=0)


def test_sinkhorn_stays_finite_where_half_precision_and_plain_exponentials_overflow():
    scores = torch.tensor([[1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])
    for epsilon in (0.05, 0.01, 0.001):
        codes = sinkhorn(scores.half(), epsilon)
        assert codes.dtype == torch.float32
        assert codes.isfinite().all()
        torch.testing.assert_close(codes.sum(1), torch.ones(3))


def test_sinkhorn_keeps_float32_under_autocast():
    torch.manual_seed(0)
    scores = 2 * torch.rand(12, 5) - 1
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            sinkhorn(scores), balanced(scores, 0.05, 3), atol=1e-6, rtol=1e-4
        )


class Ranks:
    """Sums and maxima over threads that stand for ranks."""

    def __init__(self, world):
        self.world, self.all = threading.Barrier(world), {}

    def reduce(self, x, how):
        self.all[threading.get_ident()] = x
        self.world.wait(timeout=10)
        found = how(torch.stack([self.all[k] for k in sorted(self.all)]))
        self.world.wait(timeout=10)
        return found


def test_sinkhorn_of_two_ranks_is_that_of_their_samples_together(monkeypatch):
    torch.manual_seed(0)
    scores = 2 * torch.rand(10, 4) - 1
    want = sinkhorn(scores)
    ranks = Ranks(2)
    monkeypatch.setattr(functional, "world", lambda: 2)
    monkeypatch.setattr(functional, "summed", lambda x: ranks.reduce(x, lambda s: s.sum(0)))
    monkeypatch.setattr(functional, "highest", lambda x: ranks.reduce(x, lambda s: s.amax(0)))
    with ThreadPoolExecutor(2) as pool:
        codes = torch.cat(list(pool.map(sinkhorn, scores.split(5))))
    torch.testing.assert_close(codes, want)


@pytest.mark.parametrize("crops", [2, 5])
def test_cross_views_equals_the_double_sum_written_as_loops(crops):
    torch.manual_seed(0)
    p, log_s = torch.randn(2, 3, 4).softmax(-1), torch.randn(crops, 3, 4).log_softmax(-1)
    terms = [
        -sum(float(p[i, n] @ log_s[v, n]) for n in range(3)) / 3
        for i in range(2)
        for v in range(crops)
        if v != i
    ]
    assert len(terms) == 2 * (crops - 1)
    assert cross_views(p, log_s).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_encode_passes_each_run_of_equal_crops_at_once_and_keeps_their_order():
    sizes, net = [], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    crops = [torch.full((2, 1, s, s), float(i)) for i, s in enumerate((4, 4, 2, 2, 4))]
    assert encode(net, crops)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert sizes == [(4, 1, 4, 4), (4, 1, 2, 2), (2, 1, 4, 4)]
