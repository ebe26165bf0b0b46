import math

import pytest
import torch
import torch.nn.functional as F

from saccade.evals import knn
from saccade.evals.knn import neighbors, run, vote
from saccade.nn.functional import knn_scores


def blobs(n, seed=0, classes=4, dim=6):
    torch.manual_seed(7)
    centers = torch.randn(classes, dim)
    torch.manual_seed(seed)
    y = torch.arange(n) % classes
    return centers[y] + torch.randn(n, dim), y


def answers(bank, y, query, k=5, t=0.07):
    return vote(neighbors(query, bank, k), y, 4, k, t)


def test_equals_the_vote_written_as_loops():
    (bank, y), (query, _) = blobs(30), blobs(9, seed=1)
    found = answers(bank, y, query)
    for i in range(9):
        cosine = [float(F.cosine_similarity(query[i], bank[j], dim=0)) for j in range(30)]
        near = sorted(range(30), key=lambda j: -cosine[j])[:5]
        scores = [0.0] * 4
        for j in near:
            scores[int(y[j])] += math.exp((cosine[j] - cosine[near[0]]) / 0.07)
        assert found[i].tolist() == pytest.approx(scores, abs=1e-4)


def test_equals_the_vote_of_the_online_probe():
    (bank, y), (query, _) = blobs(30), blobs(9, seed=1)
    unit = [F.normalize(x, dim=1) for x in (query, bank)]
    there = knn_scores(*unit, y, classes=4, k=5, temperature=0.07)
    assert torch.allclose(answers(bank, y, query), there, atol=1e-5)


def test_one_neighbor_of_the_bank_itself_is_always_right():
    bank, y = blobs(30)
    assert (answers(bank, y, bank, k=1).argmax(1) == y).all()


def test_all_neighbors_without_weights_answer_the_most_frequent_class():
    bank, _ = blobs(30)
    y = torch.tensor([2] * 12 + [0] * 9 + [1] * 9)
    assert (answers(bank, y, blobs(9, 1)[0], k=30, t=math.inf).argmax(1) == 2).all()


def test_all_neighbors_at_a_tiny_temperature_answer_as_the_nearest_one():
    (bank, y), (query, _) = blobs(30), blobs(9, seed=1)
    gaps = torch.cdist(F.normalize(query, dim=1), F.normalize(bank, dim=1))
    found = answers(bank, y, query, k=30, t=1e-6).argmax(1)
    assert torch.equal(found, y[gaps.argmin(1)])


def test_scale_of_features_does_not_matter():
    (bank, y), (query, _) = blobs(30), blobs(9, seed=1)
    scaled = answers(bank * torch.rand(30, 1) * 9, y, query * 100)
    assert torch.allclose(scaled, answers(bank, y, query), atol=1e-4)


def test_a_bank_twice_with_twice_the_neighbors_answers_the_same():
    (bank, y), (query, _) = blobs(30), blobs(9, seed=1)
    twice = answers(torch.cat([bank, bank]), torch.cat([y, y]), query, k=10)
    assert torch.allclose(twice, 2 * answers(bank, y, query), atol=1e-4)


def test_blocks_do_not_change_the_answer(monkeypatch):
    (bank, y), (query, _) = blobs(30), blobs(9, seed=1)
    whole = answers(bank, y, query)
    monkeypatch.setattr(knn, "QUERIES", 4)
    monkeypatch.setattr(knn, "ROWS", 7)
    assert torch.allclose(answers(bank, y, query), whole, atol=1e-6)


def test_headline_is_20_and_a_k_beyond_the_bank_is_named_not_clipped(given):
    (bank, y), (query, truth) = blobs(60), blobs(9, seed=1)
    scores = list(run("knn-dino", given(bank, y, query, truth)))
    assert [s.metric for s in scores] == ["top1@20", "top1@10"]
    assert scores[0].settings == {"k": 20, "temperature": 0.07, "bank": 60, "dropped": [100, 200]}
    expected = answers(bank, y, query, k=20).argmax(1) == truth
    assert scores[0].values.tolist() == expected.tolist()
    assert scores[0].values.mean() > 0


def test_lightlys_protocol_needs_200_training_pictures(given):
    (bank, y), (query, truth) = blobs(200), blobs(9, seed=1)
    (score,) = run("knn-lightly", given(bank, y, query, truth))
    assert score.metric == "top1@200"
    assert score.values.tolist() == (answers(bank, y, query, 200, 0.1).argmax(1) == truth).tolist()
    with pytest.raises(ValueError, match="199 training pictures are fewer than the 200 neighbors"):
        list(run("knn-lightly", given(bank[:-1], y[:-1], query, truth)))
