import math

import numpy as np
import pytest
import torch
from scipy import stats

from saccade.evals.interval import (
    bootstrap,
    jackknife,
    over_seeds,
    paired,
    paired_p,
    t_quantile,
    weighted_bootstrap,
)


def test_equals_a_bootstrap_that_resamples_pictures():
    draws = np.random.default_rng(0)
    correct = draws.random(300) < 0.7
    means = [correct[draws.integers(0, 300, 300)].mean() for _ in range(4000)]
    found = bootstrap(correct)
    assert found.value == correct.mean()
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_width_is_that_of_the_normal_approximation_on_many_pictures():
    found = bootstrap(np.arange(10_000) % 4 == 0)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 10_000)
    assert [found.low, found.high] == pytest.approx([0.25 - half, 0.25 + half], abs=5e-4)


def test_all_right_has_no_width():
    found = bootstrap(np.ones(9, dtype=bool))
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_a_seed_gives_one_interval():
    correct = np.arange(50) % 3 == 0
    assert bootstrap(correct, 5) == bootstrap(correct, 5)
    assert bootstrap(correct, 5) != bootstrap(correct, 6)


def test_pairing_narrows_the_interval_of_models_that_err_alike():
    a = np.random.default_rng(0).random(1000) < 0.5
    b = a.copy()
    b[np.flatnonzero(~a)[:30]] = True
    found = paired(a, b)
    assert found.value == pytest.approx(0.03)
    assert 0.015 < found.low < 0.03 < found.high < 0.045
    assert found.high - found.low < (bootstrap(b).high - bootstrap(b).low) / 2


def test_paired_difference_changes_sign_with_the_order():
    a, b = np.arange(40) % 2 == 0, np.arange(40) % 4 == 0
    assert paired(a, b).value == -paired(b, a).value == -0.25


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (30, 2.0423), (999, 1.9623)],
)
def test_t_quantile_is_the_printed_one(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)


def test_t_interval_holds_the_mean_as_often_as_it_says():
    draws = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).tolist()
    found = [over_seeds(row) for row in draws]
    assert np.mean([f.low < 0 < f.high for f in found]) == pytest.approx(0.95, abs=0.03)


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="seeds: 1 run has no spread"):
        over_seeds([0.5])


@pytest.mark.parametrize(("up", "down"), [(12, 3), (5, 5), (40, 0), (300, 260)])
def test_p_of_right_and_wrong_is_scipys_binomial_test(up, down):
    a, b = np.zeros(700, dtype=bool), np.zeros(700, dtype=bool)
    b[:up], a[up : up + down] = True, True
    expected = stats.binomtest(up, up + down).pvalue
    assert paired_p(a, b) == pytest.approx(expected, rel=1e-6)
    assert paired_p(b, a) == paired_p(a, b)


def test_p_of_numbers_is_scipys_permutation_test():
    draws = np.random.default_rng(3)
    a = draws.random(40)
    b = a + draws.normal(0.05, 0.2, 40)
    theirs = stats.permutation_test(
        (b - a,), np.mean, permutation_type="samples", n_resamples=10_000, rng=draws
    )
    assert paired_p(a, b) == pytest.approx(theirs.pvalue, abs=0.02)


def test_models_that_answer_alike_have_p_1():
    a = np.arange(9) % 2 == 0
    assert paired_p(a, a) == 1
    assert paired_p(a.astype(float), a.astype(float)) == 1


def test_jackknife_of_a_mean_is_the_t_interval_of_group_means():
    x = np.random.default_rng(0).random(200)
    found = jackknife(lambda rows: float(x[rows].mean()), 200)
    groups = np.array([x[np.arange(200) % 10 == g].mean() for g in range(10)])
    low, high = stats.t.interval(0.95, 9, groups.mean(), stats.sem(groups))
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), low, high), abs=1e-4)


def test_weighted_bootstrap_of_a_mean_is_the_bootstrap():
    x = np.arange(300) % 3 == 0
    found = weighted_bootstrap(lambda w: float(np.average(x, weights=w)), 300, draws=2000)
    plain = bootstrap(x)
    ours = (found.value, found.low, found.high)
    assert ours == pytest.approx((plain.value, plain.low, plain.high), abs=0.01)
