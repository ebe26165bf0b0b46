"""How sure a figure is: bootstrap over test pictures, Student's t over seeds.

Resampling n pictures with replacement draws the counts of the distinct values from a multinomial,
so the bootstrap mean of n zeros and ones is exactly Binomial(n, p) / n: no n x draws table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

DRAWS = 2000
SIGNS = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean between the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(values: Shaped[np.ndarray, "n"], seed: int = 0) -> Interval:
    """Mean with its percentile interval; it has no width where all values are equal."""
    levels, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    n = counts.sum()
    draws = np.random.default_rng(seed).multinomial(n, counts / n, DRAWS) @ levels / n  # [DRAWS]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(counts @ levels / n), float(low), float(high))


def paired(a: Shaped[np.ndarray, "n"], b: Shaped[np.ndarray, "n"], seed: int = 0) -> Interval:
    """Mean of b minus mean of a, where both answered the same n pictures."""
    return bootstrap(b.astype(np.float64) - a.astype(np.float64), seed)


def paired_p(a: Shaped[np.ndarray, "n"], b: Shaped[np.ndarray, "n"], seed: int = 0) -> float:
    """Chance of a difference at least this large if the two models were alike, two-sided.

    Right and wrong answers: McNemar's exact test. Other values: every difference gets a random
    sign, 10,000 times; the smallest p it can give is 1 / 10,001.
    """
    difference = b.astype(np.float64) - a.astype(np.float64)
    if a.dtype == b.dtype == bool:
        up, down = int((difference > 0).sum()), int((difference < 0).sum())
        return min(1.0, 2 * _binomial_tail(min(up, down), up + down))
    draws = np.random.default_rng(seed)
    observed, reached = abs(difference.sum()), 1
    for _ in range(SIGNS // 100):
        signs = draws.choice([-1.0, 1.0], (100, len(difference)))
        reached += int((np.abs(signs @ difference) >= observed - 1e-12).sum())
    return reached / (SIGNS + 1)


def _binomial_tail(most: int, n: int) -> float:
    """P(X <= most) of n fair coins."""
    return sum(math.exp(_log_choose(n, k) - n * math.log(2)) for k in range(most + 1))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def jackknife(
    statistic: Callable[[Int[np.ndarray, "_"]], float], n: int, groups: int = 10
) -> Interval:
    """A statistic of n rows with its t-interval, from leaving out each of some groups in turn.

    For figures that are no mean over pictures, such as a rank: a bootstrap's repeated rows would
    change them. The statistic gets the rows that stay.
    """
    rows = np.arange(n)
    value = statistic(rows)
    without = np.array([statistic(rows[rows % groups != g]) for g in range(groups)])
    half = t_quantile(groups - 1) * math.sqrt((groups - 1) / groups * without.var() * groups)
    return Interval(value, value - half, value + half)


def weighted_bootstrap(
    statistic: Callable[[Float[np.ndarray, "n"]], float], n: int, draws: int = 200, seed: int = 0
) -> Interval:
    """A statistic of weighted pictures with its percentile interval: weights are counts drawn."""
    value = statistic(np.ones(n))
    chance = np.random.default_rng(seed)
    found = [
        statistic(chance.multinomial(n, np.full(n, 1 / n)).astype(float)) for _ in range(draws)
    ]
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of independent runs with its t-interval; needs two runs or more."""
    n = len(values)
    if n < 2:
        raise ValueError(f"seeds: {n} run has no spread; give at least 2 seeds")
    half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return Interval(mean, mean - half, mean + half)


def t_quantile(freedom: int) -> float:
    """The t at which Student's distribution holds 95 % between -t and t."""
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, freedom) < LEVEL else (low, middle)
    return high


def _between(t: float, freedom: int) -> float:
    """P(-t < T < t) for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    if odd:
        total = 0.0 if freedom == 1 else total
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
