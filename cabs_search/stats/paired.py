"""Tests of two candidates on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from cabs_search.stats.simultaneous import (
    PSEUDO_DIFFERENCES,
    REPLICATES,
    Floats,
    Size,
    Values,
    p_values,
    resample_weights,
    sign_flips,
    simultaneous,
    standard_errors,
)
from cabs_search.stats.two_sided import TwoSidedTest, t_test

Strata = Sequence[str] | npt.NDArray[np.str_]


def paired(
    a: Values, b: Values, strata: Strata | None = None, confidence: float = 0.95
) -> TwoSidedTest:
    """Compare two candidates on the same items by the paired t-test, strata weighing the same.

    With one stratum it is the ordinary paired t-test (Student, Biometrika 1908); with several the
    estimate is the mean of the strata's mean differences, with the degrees of freedom of
    Satterthwaite (Biometrics 1946).

    Args:
        a, b: one value an item, in the same order.
        strata: each item's task; None: one stratum.
        confidence: level of the interval.

    Raises:
        ValueError: unequal lengths, or a stratum of fewer than two items.

    """
    parts = _differences(a, b, strata)
    variances = np.array([part.var(ddof=1) / part.size for part in parts]) / len(parts) ** 2
    error = float(np.sqrt(variances.sum()))
    free = np.array([part.size - 1 for part in parts])
    freedom = float(variances.sum() ** 2 / sum(variances**2 / free)) if error else math.inf
    return t_test("paired t", _mean_of_means(parts), error, freedom, confidence)


def mcnemar(a: Values, b: Values, confidence: float = 0.95) -> TwoSidedTest:
    """Compare two candidates' 0/1 scores by McNemar's exact test; strata are not told apart.

    If neither is better, each item on which they differ is as likely to be won by a as by b
    (McNemar, Psychometrika 1947). The statistic is the number won by a. Source of the interval:
    Agresti and Min, Statistics in Medicine 2005.

    Raises:
        ValueError: unequal lengths, no items, or a value that is neither 0 nor 1.

    """
    x, y = _same_items(a, b)
    if not np.isin(np.concatenate([x, y]), (0.0, 1.0)).all():
        raise ValueError(
            "McNemar's test is of scores of 0 and 1; use permutation or wilcoxon for others"
        )
    wins, losses = int((x > y).sum()), int((x < y).sum())
    estimate = (wins - losses) / x.size
    error = math.sqrt(wins + losses + PSEUDO_DIFFERENCES - (wins - losses) ** 2 / x.size) / x.size
    margin = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return TwoSidedTest(
        test="McNemar exact",
        estimate=estimate,
        interval=(estimate - margin, estimate + margin),
        statistic=float(wins),
        p_value=float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    )


def wilcoxon(a: Values, b: Values, confidence: float = 0.95) -> TwoSidedTest:
    """Compare two candidates' graded scores by Wilcoxon's signed-rank test (Biometrics 1945).

    Items with equal scores are left out. The estimate is the mean difference with its t-interval;
    the test uses ranks.

    Raises:
        ValueError: unequal lengths, or fewer than two items.

    """
    (difference,) = _differences(a, b, None)
    statistic, p_value = 0.0, 1.0
    if difference.any():
        ranks = stats.wilcoxon(difference)
        statistic, p_value = float(ranks.statistic), float(ranks.pvalue)
    plain = paired(a, b, None, confidence)
    return replace(plain, test="Wilcoxon", statistic=statistic, p_value=p_value)


def permutation(
    a: Values, b: Values, strata: Strata | None = None, *, seed: int = 0, confidence: float = 0.95
) -> TwoSidedTest:
    """Compare two candidates by the paired permutation test (Fisher, 1935), see ``sign_flips``.

    The interval, the arguments and the errors are those of ``paired``.
    """
    parts = _differences(a, b, strata)
    # weighted so that their sum is the mean of the strata's means
    weighted = np.concatenate([part / part.size / len(parts) for part in parts])
    p_value = float(sign_flips(weighted[:, None], seed=seed)[0])
    plain = paired(a, b, strata, confidence)
    return replace(
        plain, test="paired permutation", statistic=float(weighted.sum()), p_value=p_value
    )


def bootstrap(
    a: Values, b: Values, strata: Strata | None = None, *, seed: int = 0, confidence: float = 0.95
) -> TwoSidedTest:
    """Compare two candidates by a paired bootstrap over items, stratified.

    The statistic is in standard errors; arguments and errors are those of ``paired``. Source:
    Efron, Annals of Statistics 1979; with the correction for few items of ``resample_weights``.
    """
    parts = _differences(a, b, strata)
    means = [_resampled_means(part, (seed, place)) for place, part in enumerate(parts)]
    replicates = np.mean(means, axis=0)[:, None]
    estimate, size = np.array([_mean_of_means(parts)]), Size.of([part.size for part in parts])
    low, high = simultaneous(estimate, replicates, size, confidence)
    return TwoSidedTest(
        test="paired bootstrap",
        estimate=float(estimate[0]),
        interval=(float(low[0]), float(high[0])),
        statistic=float(estimate[0] / standard_errors(replicates, size)[0]),
        p_value=float(p_values(estimate, replicates, size)[0]),
    )


def _resampled_means(values: Floats, seed: Sequence[int]) -> Floats:
    samples = resample_weights(np.arange(values.size), REPLICATES, seed)
    return np.concatenate([(weights @ values) / weights.sum(axis=1) for weights in samples])


def _mean_of_means(parts: Sequence[Floats]) -> float:
    return float(np.mean([part.mean() for part in parts]))


def _same_items(a: Values, b: Values) -> tuple[Floats, Floats]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"a and b must be of the same items, but got {x.size} and {y.size} values")
    if not x.size:
        raise ValueError("items are needed, but got none")
    return x, y


def _differences(a: Values, b: Values, strata: Strata | None) -> list[Floats]:
    """Return the items' differences by stratum."""
    x, y = _same_items(a, b)
    names = np.zeros(x.size, dtype=np.int64) if strata is None else np.asarray(strata)
    parts = [(x - y)[names == name] for name in np.unique(names)]
    if min(part.size for part in parts) < 2:
        raise ValueError("each stratum must have at least two items")
    return parts
