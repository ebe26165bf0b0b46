"""Few-shot, retrieval and multi-label protocols."""

import numpy as np
import pytest
import torch

from saccade.evals import few_shot, logistic, retrieval


def blobs(n, classes, spread, seed=0):
    centers = torch.randn(classes, 8, generator=torch.Generator().manual_seed(9)) * 3
    y = torch.arange(n) % classes
    noise = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return centers[y] + spread * noise, y


def test_an_episode_written_as_loops():
    x, y = blobs(140, 7, 3.0)
    rows = [(y == c).nonzero()[:, 0] for c in range(7)]
    found = [few_shot.episode(x, rows, 5, seed=1, number=e) for e in range(4)]
    assert len(set(found)) > 1  # episodes differ
    key = int(few_shot.fold(few_shot.fold(torch.tensor(1), few_shot.salt("episode")), 2))
    ways = few_shot.permutation(7, key, 0)[:5].tolist()
    unit = [v / v.norm() for v in x]
    means, asked = [], []
    for w, way in enumerate(ways):
        order = few_shot.permutation(20, key, 1 + way)[:20].tolist()
        mine = [int(rows[way][i]) for i in order]
        mean = sum(unit[i] for i in mine[:5])
        means.append(mean / mean.norm())
        asked += [(i, w) for i in mine[5:]]
    right = [max(range(5), key=lambda w: float(unit[i] @ means[w])) == w0 for i, w0 in asked]
    assert len(right) == 75
    assert found[2] == pytest.approx(np.mean(right))


def test_few_shot_on_separate_and_on_mixed_classes(given, monkeypatch):
    monkeypatch.setattr(few_shot, "EPISODES", 60)
    monkeypatch.setattr(few_shot, "DRAWS", 1)

    def figures(spread):
        x, y = blobs(200, 8, spread)
        scores = few_shot.run("few-shot", given(x, y, x, y))
        return {s.metric: s.values.mean() for s in scores}

    easy, hard = figures(0.01), figures(100.0)
    assert list(easy) == [
        *("5-way 1-shot", "5-way 5-shot"),
        *("top1, 1 a class", "top1, 5 a class", "top1, 10 a class"),
    ]
    assert min(easy.values()) == 1
    assert hard["5-way 1-shot"] == pytest.approx(0.2, abs=0.02)


def test_what_the_data_cannot_fill_is_left_out(given):
    x, y = blobs(48, 8, 1.0)  # 6 of each
    metrics = [s.metric for s in few_shot.run("few-shot", given(x, y, x, y))]
    assert metrics == ["top1, 1 a class", "top1, 5 a class"]


def test_retrieval_of_separate_classes_is_perfect_and_chance_is_the_share(given):
    x, y = blobs(40, 4, 0.01)
    (score,) = retrieval.run("retrieval", given(x, y, x, y))
    assert score.values.mean() == pytest.approx(1)
    noise = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4000) % 4
    (score,) = retrieval.run("retrieval", given(noise, labels, noise[:50], labels[:50]))
    assert score.values.mean() == pytest.approx(0.25, abs=0.03)


def test_a_class_without_training_pictures_takes_no_part(given):
    x, y = blobs(40, 4, 1.0)
    (score,) = retrieval.run(
        "retrieval", given(x[y != 3], y[y != 3], x, y, classes=(tuple("abcd"),) * 2)
    )
    assert (len(score.values), score.settings["left_out"]) == (30, 10)


def test_several_classes_a_picture(given):
    names = ("cat", "cat|dog", "dog", "none")
    y = torch.arange(120) % 4
    held = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])[y].float()
    x = torch.cat([held, torch.randn(120, 2, generator=torch.Generator().manual_seed(0))], 1)
    other = ("dog|cat", "none", "cat", "dog")  # other numbers, another order
    places = torch.tensor([2, 0, 3, 1])[y]
    (figure,) = logistic.run("multi-label", given(x, y, x, places, classes=(names, other)))
    assert figure.settings["names"] == ["cat", "dog", "none"]
    assert (figure.interval.value, figure.unit) == (pytest.approx(1), "%")
    shuffled = places[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    (figure,) = logistic.run("multi-label", given(x, y, x, shuffled, classes=(names, other)))
    assert 0.2 < figure.interval.low < figure.interval.value < figure.interval.high < 0.7
