"""Tests and intervals of independent runs, as papers report them."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from cabs_search.stats.paired import TwoSidedTest, _t_test, _without_spread
from cabs_search.stats.simultaneous import Values


def welch(a: Values, b: Values, confidence: float = 0.95) -> TwoSidedTest:
    """Welch's t-test of two independent samples of runs.

    Raises:
        ValueError: fewer than two values on a side.

    """
    return _of_runs("Welch t", a, b, confidence, equal_variances=False)


def student(a: Values, b: Values, confidence: float = 0.95) -> TwoSidedTest:
    """Student's t-test of two independent samples of runs with one variance; errors as in
    ``welch``.
    """
    return _of_runs("Student t", a, b, confidence, equal_variances=True)


def _of_runs(
    test: str, a: Values, b: Values, confidence: float, *, equal_variances: bool
) -> TwoSidedTest:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(x.size, y.size) < 2:
        raise ValueError(f"two values a side are needed, but got {x.size} and {y.size}")
    estimate, free = float(x.mean() - y.mean()), np.array([x.size - 1, y.size - 1])
    variances = np.array([side.var(ddof=1) if np.ptp(side) else 0.0 for side in (x, y)])
    if not variances.any():
        return _without_spread(test, float(x[0] - y[0]))
    sizes, freedom = free + 1, float(free.sum())
    if equal_variances:
        variances = np.full(2, (variances * free).sum() / freedom)
    else:
        freedom = float((variances / sizes).sum() ** 2 / ((variances / sizes) ** 2 / free).sum())
    error = float(np.sqrt((variances / sizes).sum()))
    return _t_test(test, estimate, error, freedom, confidence)


def mean_interval(runs: Values, confidence: float = 0.95) -> tuple[float, float]:
    """The t-interval of a mean of independent runs. Raises ValueError for fewer than two."""
    x = np.asarray(runs, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"two values are needed, but got {x.size}")
    margin = (
        float(stats.t.ppf(0.5 + confidence / 2, x.size - 1))
        * float(x.std(ddof=1))
        / math.sqrt(x.size)
    )
    return float(x.mean()) - margin, float(x.mean()) + margin
