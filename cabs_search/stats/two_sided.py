"""Result of a two-sided test, and the t-test from an estimate and its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True, kw_only=True)
class TwoSidedTest:
    """Two-sided comparison of a with b."""

    test: str
    """Name of the test."""
    estimate: float
    """mean(a) - mean(b)."""
    interval: tuple[float, float]
    """Confidence interval of the estimate."""
    statistic: float
    """Student's t; for a bootstrap the estimate in standard errors; else the test's own."""
    p_value: float
    """Two-sided p of no difference."""


def t_test(
    test: str, estimate: float, error: float, freedom: float, confidence: float
) -> TwoSidedTest:
    """Test an estimate by Student's t.

    Args:
        test: the test's name.
        estimate: difference of two means.
        error: its standard error; 0 if all values differ by the same.
        freedom: degrees of freedom.
        confidence: level of the interval.

    """
    if error == 0.0:
        statistic = math.copysign(math.inf, estimate) if estimate else 0.0
        interval, p_value = (estimate, estimate), float(not estimate)
    else:
        statistic = estimate / error
        margin = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
        interval = (estimate - margin, estimate + margin)
        p_value = float(2 * stats.t.sf(abs(statistic), freedom))
    return TwoSidedTest(
        test=test, estimate=estimate, interval=interval, statistic=statistic, p_value=p_value
    )
