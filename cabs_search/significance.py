"""Whether a difference is real: paired tests on items, Welch's test on runs, bootstrap intervals.

Symbols: a, b    two candidates' values, higher is better; estimate = mean(a) - mean(b)
         S       number of strata (tasks), each with equal weight whatever its number of items
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.floating] | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A two-sided comparison of a with b."""

    test: str
    """The test's name."""
    estimate: float
    """How much higher a is."""
    interval: tuple[float, float]
    """Of the estimate, at the confidence asked for."""
    statistic: float
    """Student's t; in standard errors for a bootstrap."""
    p_value: float
    """Of no difference, two-sided."""


def welch(a: Values, b: Values, confidence: float = 0.95) -> Comparison:
    """Welch's t-test of two independent samples of runs.

    Raises:
        ValueError: fewer than two values on a side.

    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(x.size, y.size) < 2:
        raise ValueError(f"two values a side are needed, but got {x.size} and {y.size}")
    found = stats.ttest_ind(x, y, equal_var=False)
    low, high = found.confidence_interval(confidence)
    return Comparison(
        test="Welch t",
        estimate=float(x.mean() - y.mean()),
        interval=(float(low), float(high)),
        statistic=float(found.statistic),
        p_value=float(found.pvalue),
    )


def paired(
    a: Values, b: Values, strata: Sequence[str] | npt.NDArray[np.str_] | None = None, confidence: float = 0.95
) -> Comparison:
    """Paired t-test of two candidates on the same items, every stratum weighing the same.

    With one stratum it is the ordinary paired t-test; with several, the standard error of the mean of the strata's
    mean differences, and Satterthwaite's degrees of freedom.

    Args:
        a, b: one value an item, in the same order.
        strata: the item's task; None: one stratum.

    Raises:
        ValueError: unequal lengths, or a stratum of fewer than two items.

    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"a and b must be of the same items, but got {x.size} and {y.size} values")
    names = np.zeros(x.size, dtype=np.int64) if strata is None else np.asarray(strata)
    parts = [(x - y)[names == name] for name in np.unique(names)]
    if not parts or min(part.size for part in parts) < 2:
        raise ValueError("two items a stratum are needed")
    estimate = float(np.mean([part.mean() for part in parts]))
    variances = np.array([part.var(ddof=1) / part.size for part in parts]) / len(parts) ** 2
    error = float(np.sqrt(variances.sum()))
    if error == 0.0:
        p_value, statistic = (1.0, 0.0) if estimate == 0.0 else (0.0, float(np.sign(estimate)) * float("inf"))
        return Comparison(
            test="paired t", estimate=estimate, interval=(estimate, estimate), statistic=statistic, p_value=p_value
        )
    freedom = float(variances.sum() ** 2 / sum(v**2 / (p.size - 1) for v, p in zip(variances, parts, strict=True)))
    margin = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    return Comparison(
        test="paired t",
        estimate=estimate,
        interval=(estimate - margin, estimate + margin),
        statistic=estimate / error,
        p_value=float(2 * stats.t.sf(abs(estimate / error), freedom)),
    )


def from_replicates(estimate: float, differences: npt.NDArray[np.floating], confidence: float = 0.95) -> Comparison:
    """A paired bootstrap: ``differences`` of a and b on the same draws of items, [replicates]."""
    ties = float(np.mean(differences == 0)) / 2
    below, above = float(np.mean(differences < 0)) + ties, float(np.mean(differences > 0)) + ties
    spread = float(differences.std(ddof=1))
    return Comparison(
        test="paired bootstrap",
        estimate=estimate,
        interval=percentile_interval(differences, confidence),
        statistic=estimate / spread if spread else 0.0,
        p_value=min(1.0, 2 * max(min(below, above), 0.5 / len(differences))),
    )


def resamples(items: int, count: int, seed: int | Sequence[int]) -> npt.NDArray[np.int64]:
    """Bootstrap draws of items with replacement, [count, items]."""
    return np.random.default_rng(seed).integers(items, size=(count, items))


def percentile_interval(replicates: npt.NDArray[np.floating], confidence: float = 0.95) -> tuple[float, float]:
    """The middle of bootstrap replicates."""
    low, high = np.quantile(replicates, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
