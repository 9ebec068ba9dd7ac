"""Tests and intervals of independent runs, as papers report them."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from cabs_search.stats.simultaneous import Values
from cabs_search.stats.two_sided import TwoSidedTest, t_test


def welch(a: Values, b: Values, confidence: float = 0.95) -> TwoSidedTest:
    """Compare two independent samples of runs by Welch's t-test (Biometrika 1947).

    Raises:
        ValueError: fewer than two values on a side.

    """
    return _compare_runs("Welch t", a, b, confidence, equal_variances=False)


def student(a: Values, b: Values, confidence: float = 0.95) -> TwoSidedTest:
    """Compare two independent samples of runs with one variance by Student's t-test.

    Source: Student, The probable error of a mean, Biometrika 1908.

    Raises:
        ValueError: fewer than two values on a side.

    """
    return _compare_runs("Student t", a, b, confidence, equal_variances=True)


def _compare_runs(
    test: str, a: Values, b: Values, confidence: float, *, equal_variances: bool
) -> TwoSidedTest:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(x.size, y.size) < 2:
        raise ValueError(f"two values a side are needed, but got {x.size} and {y.size}")
    # equal values: their variance is 0, not what rounding makes of it
    variances = np.array([side.var(ddof=1) if np.ptp(side) else 0.0 for side in (x, y)])
    if not variances.any():
        return t_test(test, float(x[0] - y[0]), 0.0, math.inf, confidence)
    sizes = np.array([x.size, y.size])
    each_freedom = sizes - 1
    freedom = float(each_freedom.sum())
    if equal_variances:
        variances = np.full(2, (variances * each_freedom).sum() / freedom)
    else:  # Welch-Satterthwaite
        of_means = variances / sizes
        freedom = float(of_means.sum() ** 2 / (of_means**2 / each_freedom).sum())
    error = float(np.sqrt((variances / sizes).sum()))
    return t_test(test, float(x.mean() - y.mean()), error, freedom, confidence)


def mean_interval(runs: Values, confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's t-interval of the mean of independent runs.

    Raises:
        ValueError: fewer than two runs.

    """
    x = np.asarray(runs, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"two values are needed, but got {x.size}")
    critical = float(stats.t.ppf(0.5 + confidence / 2, x.size - 1))
    margin = critical * float(x.std(ddof=1)) / math.sqrt(x.size)
    return float(x.mean()) - margin, float(x.mean()) + margin
