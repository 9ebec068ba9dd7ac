"""Tests of two candidates on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cabs_search.stats.simultaneous import (
    PSEUDO_DIFFERENCES,
    REPLICATES,
    Floats,
    Names,
    Size,
    Values,
    p_values,
    resample_weights,
    sign_flips,
    simultaneous,
    standard_errors,
)


@dataclass(frozen=True, kw_only=True)
class TwoSidedTest:
    """A two-sided comparison of a with b."""

    test: str
    """The test's name."""
    estimate: float
    """How much higher a is."""
    interval: tuple[float, float]
    """Of the estimate, at the confidence asked for."""
    statistic: float
    """Student's t; in standard errors for a bootstrap; what the test is named for otherwise."""
    p_value: float
    """Of no difference, two-sided."""


def paired(
    a: Values, b: Values, strata: Names | None = None, confidence: float = 0.95
) -> TwoSidedTest:
    """Paired t-test of two candidates on the same items, every stratum weighing the same.

    With one stratum it is the ordinary paired t-test; with several, the standard error of the mean
    of the strata's mean differences, and Satterthwaite's degrees of freedom.

    Args:
        a, b: one value an item, in the same order.
        strata: the item's task; None: one stratum.
        confidence: of the interval.

    Raises:
        ValueError: unequal lengths, or a stratum of fewer than two items.

    """
    parts = _parts(a, b, strata)
    estimate = float(np.mean([part.mean() for part in parts]))
    variances = np.array([part.var(ddof=1) / part.size for part in parts]) / len(parts) ** 2
    error = float(np.sqrt(variances.sum()))
    if error == 0.0:
        return _without_spread("paired t", estimate)
    freedom = float(
        variances.sum() ** 2
        / sum(v**2 / (p.size - 1) for v, p in zip(variances, parts, strict=True))
    )
    return _t_test("paired t", estimate, error, freedom, confidence)


def mcnemar(a: Values, b: Values, confidence: float = 0.95) -> TwoSidedTest:
    """McNemar's exact test of two candidates' 0/1 scores; items of several tasks count alike.

    Of the items on which they differ, each is as likely to be a's as b's if neither is better. The
    statistic is a's number of them; the interval is Agresti and Min's (Statistics in Medicine
    2005).

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
    """Wilcoxon's signed-rank test of two candidates' graded scores or losses; items that are equal
    are left out.

    The estimate is the mean difference, with its t-interval; the test is of ranks.

    Raises:
        ValueError: unequal lengths, or fewer than two items.

    """
    difference = _parts(a, b, None)[0]
    plain = paired(a, b, None, confidence)
    if not difference.any():
        return TwoSidedTest(
            test="Wilcoxon",
            estimate=plain.estimate,
            interval=plain.interval,
            statistic=0.0,
            p_value=1.0,
        )
    found = stats.wilcoxon(difference)
    return TwoSidedTest(
        test="Wilcoxon",
        estimate=plain.estimate,
        interval=plain.interval,
        statistic=float(found.statistic),
        p_value=float(found.pvalue),
    )


def permutation(
    a: Values, b: Values, strata: Names | None = None, *, seed: int = 0, confidence: float = 0.95
) -> TwoSidedTest:
    """Paired permutation test: which candidate an item's two values are whose is drawn at random;
    see ``sign_flips``.

    Args, errors: as in ``paired``, of which the interval is.
    """
    plain, differences = paired(a, b, strata, confidence), _weighted(a, b, strata)
    p_value = float(sign_flips(differences[:, None], seed=seed)[0])
    return TwoSidedTest(
        test="paired permutation",
        estimate=plain.estimate,
        interval=plain.interval,
        statistic=float(differences.sum()),
        p_value=p_value,
    )


def bootstrap(
    a: Values, b: Values, strata: Names | None = None, *, seed: int = 0, confidence: float = 0.95
) -> TwoSidedTest:
    """Paired bootstrap over items, stratified; the statistic is in standard errors. Args, errors:
    as in ``paired``.
    """
    parts = _parts(a, b, strata)
    replicates = np.mean([_means(part, (seed, place)) for place, part in enumerate(parts)], axis=0)
    estimate, size = (
        float(np.mean([part.mean() for part in parts])),
        Size.of([part.size for part in parts]),
    )
    low, high = simultaneous(np.array([estimate]), replicates[:, None], size, confidence)
    error = float(standard_errors(replicates[:, None], size)[0])
    return TwoSidedTest(
        test="paired bootstrap",
        estimate=estimate,
        interval=(float(low[0]), float(high[0])),
        statistic=estimate / error,
        p_value=float(p_values(np.array([estimate]), replicates[:, None], size)[0]),
    )


def _means(values: Floats, seed: Sequence[int]) -> Floats:
    parts = resample_weights(np.arange(values.size), REPLICATES, seed)
    return np.concatenate([(w @ values) / w.sum(axis=1) for w in parts])


def _same_items(a: Values, b: Values) -> tuple[Floats, Floats]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"a and b must be of the same items, but got {x.size} and {y.size} values")
    if not x.size:
        raise ValueError("items are needed, but got none")
    return x, y


def _parts(a: Values, b: Values, strata: Names | None) -> list[Floats]:
    """The differences by stratum."""
    x, y = _same_items(a, b)
    names = np.zeros(x.size, dtype=np.int64) if strata is None else np.asarray(strata)
    parts = [(x - y)[names == name] for name in np.unique(names)]
    if min(part.size for part in parts) < 2:
        raise ValueError("two items a stratum are needed")
    return parts


def _weighted(a: Values, b: Values, strata: Names | None) -> Floats:
    """Differences by item, so weighted that their sum is the mean of the strata's means."""
    parts = _parts(a, b, strata)
    return np.concatenate([part / part.size / len(parts) for part in parts])


def _t_test(
    test: str, estimate: float, error: float, freedom: float, confidence: float
) -> TwoSidedTest:
    margin = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    return TwoSidedTest(
        test=test,
        estimate=estimate,
        interval=(estimate - margin, estimate + margin),
        statistic=estimate / error,
        p_value=float(2 * stats.t.sf(abs(estimate / error), freedom)),
    )


def _without_spread(test: str, estimate: float) -> TwoSidedTest:
    """All values differ by the same."""
    p_value, statistic = (1.0, 0.0) if estimate == 0.0 else (0.0, math.copysign(math.inf, estimate))
    return TwoSidedTest(
        test=test,
        estimate=estimate,
        interval=(estimate, estimate),
        statistic=statistic,
        p_value=p_value,
    )
