"""Simultaneous inference on many candidates: intervals, tests, tie set.

Symbols:
    n        items
    k        candidates
    S        strata: tasks, each of the same weight unless said otherwise
    f        estimates in a family: scores, or differences of scores
    B        bootstrap samples
    a, b     two candidates' values of the same items; higher is better
    θ, θ*    estimates [f] and their bootstrap replicates [B, f]
    cluster  items that stand or fall together, such as one article's: drawn, or flipped, as one
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Values = npt.NDArray[np.floating] | Sequence[float]
Floats = npt.NDArray[np.float64]
REPLICATES = 10_000
"""Number of bootstrap samples, and of random flips of signs."""
PSEUDO_DIFFERENCES = 2.0
"""Agresti-Min correction (Statistics in Medicine 2005): pseudo-items counted as differing, half in
favour of each side.
"""
CHUNK = 1 << 22
"""Most weights of bootstrap samples held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Effective size of a stratified sample of items; of several samples, arrays [f]."""

    items: float | Floats
    """Items in all of S equally large strata with the same mean squared weight of an item.

    With n_s items in stratum s: √(S³ / Σ n_s⁻²); if strata have weights w_s: √(S / Σ w_s² n_s⁻²).
    """
    freedom: float | Floats
    """Degrees of freedom, counted in clusters, not items."""

    @classmethod
    def of(
        cls,
        items: Sequence[int],
        clusters: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> Size:
        """Compute the size.

        Args:
            items: each stratum's number of items.
            clusters: each stratum's number of clusters; None: of items.
            weights: each stratum's weight in an estimate; None: 1/S.

        """
        free = sum(count - 1 for count in (clusters or items))
        shares = [1 / len(items)] * len(items) if weights is None else weights
        squares = ((share / count) ** 2 for share, count in zip(shares, items, strict=True))
        return cls(items=math.sqrt(len(items) / sum(squares)), freedom=max(1, free))

    @classmethod
    def of_each(cls, sizes: Sequence[Size]) -> Size:
        """Join the sizes of estimates that are on samples of their own."""
        items, freedom = (np.array([getattr(s, f) for s in sizes]) for f in ("items", "freedom"))
        return cls(items=items, freedom=freedom)


def resample_weights(
    clusters: npt.NDArray[np.int64], count: int, seed: int | Sequence[int]
) -> Iterator[npt.NDArray[np.float32]]:
    """Draw bootstrap samples of items; yield some samples at a time.

    One cluster fewer is drawn than there are: the variance over the samples is then that of n - 1
    degrees of freedom (Rao and Wu, JASA 1988), which matters for few items.

    Args:
        clusters: each item's cluster, counted from 0, [n].
        count: number of samples.
        seed: the same one gives the same samples, whatever the candidates.

    Yields:
        How often each item is in each sample, [samples, n].

    """
    draw, clusters_in_all = np.random.default_rng(seed), int(clusters.max()) + 1
    rows = max(1, CHUNK // max(clusters_in_all, clusters.size))
    is_item = bool(np.array_equal(clusters, np.arange(clusters_in_all)))
    for start in range(0, count, rows):
        size = min(rows, count - start)
        drawn = draw.integers(clusters_in_all, size=(size, max(1, clusters_in_all - 1)))
        # one bincount for all samples: each counts in a range of its own
        drawn += clusters_in_all * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * clusters_in_all)
        weights = counts.reshape(size, clusters_in_all).astype(np.float32)
        yield weights if is_item else weights[:, clusters]


def standard_errors(replicates: Floats, size: Size) -> Floats:
    """Compute standard errors of estimates, [f], with PSEUDO_DIFFERENCES more items differing.

    Without these, candidates that differ on three items, all in favour of one, would be told apart
    with certainty, and a score of 1 would have an interval of no width (Agresti and Min, Statistics
    in Medicine 2005).

    Args:
        replicates: bootstrap replicates, [B, f].
        size: of the sample.

    """
    errors: Floats = np.sqrt(replicates.var(axis=0) + PSEUDO_DIFFERENCES / size.items**2)
    return errors


def simultaneous(
    estimates: Floats, replicates: Floats, size: Size, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Compute intervals that hold together: in ``confidence`` of all studies none misses its truth.

    The critical value is the quantile of max |t| over the family (Westfall and Young,
    Resampling-Based Multiple Testing, 1993).

    Args:
        estimates: scores, or differences of scores, [f].
        replicates: all of them in the same bootstrap samples, [B, f].
        size: of the sample.
        confidence: level of the family.

    Returns:
        Lower and upper ends, [f].

    """
    critical = np.quantile(np.abs(standardized(estimates, replicates)).max(axis=1), confidence)
    margin = with_freedom(float(critical), size) * standard_errors(replicates, size)
    return estimates - margin, estimates + margin


def standardized(estimates: Floats, replicates: Floats) -> Floats:
    """Return replicates in standard errors from the estimate; 0 where none differs."""
    spread = replicates.std(axis=0)
    return (replicates - estimates) / np.where(spread > 0, spread, math.inf)


def with_freedom(critical: float, size: Size) -> Floats:
    """Widen a bound in standard errors for errors from few clusters: from normal to Student's t."""
    widened: Floats = -special.stdtrit(size.freedom, special.ndtr(-critical))
    return widened


def p_values(estimates: Floats, replicates: Floats, size: Size) -> Floats:
    """Compute two-sided p of no difference from the bootstrap's standard errors, not adjusted, [f].

    Arguments as of ``simultaneous``.
    """
    t = np.abs(estimates) / standard_errors(replicates, size)
    p: Floats = 2 * stats.t.sf(t, size.freedom)
    return p


def sign_flips(
    differences: Floats,
    clusters: npt.NDArray[np.int64] | None = None,
    *,
    seed: int | Sequence[int] = 0,
    count: int = REPLICATES,
) -> Floats:
    """Test many differences by paired permutation with the same flips; two-sided p, [f].

    If neither of two candidates is better, an item's difference is as likely as its opposite
    (Fisher, The Design of Experiments, 1935). If one is better on one task and worse on another,
    the test errs on the safe side. With the observed sum counted, p is never 0 (Phipson and Smyth,
    2010).

    Args:
        differences: by item, weighted so that their sum over items is the estimate, [n, f].
        clusters: each item's cluster, counted from 0; None: each item by itself.
        seed: seed of the flips.
        count: number of flips; 1 / (count + 1) is the least p.

    """
    clusters = np.arange(len(differences)) if clusters is None else clusters
    sums = np.zeros((int(clusters.max()) + 1, differences.shape[1]))
    np.add.at(sums, clusters, differences)
    # flips are drawn for all clusters, also for those without a difference, which are skipped
    # below: p must not depend on the family
    differ = np.flatnonzero(np.abs(sums).sum(axis=1))
    # a hair less than the sum: equal sums in another order of addition must count
    draw, observed = np.random.default_rng(seed), np.abs(sums.sum(axis=0)) * (1 - 1e-9)
    reached, rows = np.zeros(differences.shape[1]), max(1, CHUNK // len(sums))
    for start in range(0, count, rows):
        flips = draw.integers(2, size=(min(rows, count - start), len(sums)), dtype=np.int8)
        reached += (np.abs((flips[:, differ] * 2.0 - 1.0) @ sums[differ]) >= observed).sum(axis=0)
    p: Floats = (1 + reached) / (count + 1)
    return p


def holm(p: Values) -> Floats:
    """Adjust p-values by Holm's method (Scandinavian Journal of Statistics 1979), [f].

    Rejecting those below α errs at all in at most α of all families.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty(values.size)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def tie_set(
    estimates: Floats, replicates: Floats, size: Size, confidence: float = 0.95
) -> npt.NDArray[np.bool_]:
    """Tell which candidates cannot be told from the best, [k].

    The set holds the true best in ``confidence`` of all studies. Candidate i stays unless some j
    beats it by more than a best candidate would be beaten by chance: the largest standardized
    difference to i is compared with the bootstrap's quantile of that largest difference. The level
    is each candidate's own: only the true best must not be lost.

    Source: subset selection, Gupta, Technometrics 1965; here with a bootstrap in place of equal
    variances.

    Args:
        estimates: scores, [k].
        replicates: their bootstrap replicates, [B, k].
        size: of the sample.
        confidence: level of the set.

    """
    kept = np.ones(len(estimates), dtype=bool)
    for i in range(len(estimates)):
        others = np.arange(len(estimates)) != i
        if not others.any():
            break
        gaps = estimates[others] - estimates[i]
        gap_replicates = replicates[:, others] - replicates[:, [i]]
        critical = np.quantile(standardized(gaps, gap_replicates).max(axis=1), confidence)
        beaten_by = gaps / standard_errors(gap_replicates, size)
        kept[i] = beaten_by.max() <= with_freedom(float(critical), size)
    return kept


def items_needed(
    error: float, items: int, gap: float, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Return how many items a two-sided paired test needs to find a true gap of two candidates.

    Source: the normal sample-size formula, n = n₀ · ((z_{1-α/2} + z_{power}) · error / gap)².

    Args:
        error: standard error of the difference on ``items`` items.
        items: n₀, items of all tasks; more of them in the same proportions.
        gap: true difference of the scores.
        confidence: 1 - α of the test.
        power: chance that the gap is found.

    """
    z = float(stats.norm.ppf(0.5 + confidence / 2) + stats.norm.ppf(power))
    return math.ceil(items * (error * z / gap) ** 2)


def selection_bias(estimates: Floats, replicates: Floats) -> float:
    """Estimate how much the best of many estimates flatters itself, by bootstrap.

    In each bootstrap sample the best candidate is chosen anew; its excess there over its estimate
    is what choosing by the sample bought. Arguments as of ``simultaneous``.

    Source: optimism of the bootstrap, Efron, JASA 1983.
    """
    best = replicates.argmax(axis=1)
    return float((replicates[np.arange(len(best)), best] - estimates[best]).mean())
