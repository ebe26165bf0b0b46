"""How sure a figure is: bootstrap over test pictures, Student's t over seeds.

Resampling n pictures with replacement draws the counts of the distinct values from a multinomial,
so the bootstrap mean of n zeros and ones is exactly Binomial(n, p) / n: no n x draws table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped

DRAWS = 2000
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


def paired(a: Bool[np.ndarray, "n"], b: Bool[np.ndarray, "n"], seed: int = 0) -> Interval:
    """Accuracy of b minus accuracy of a, where both answered the same n pictures."""
    return bootstrap(b.astype(np.float64) - a.astype(np.float64), seed)


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
