"""Whether a difference is real: tests of two candidates, and simultaneous inference on many.

Symbols: n, k, S   items, candidates, strata (tasks; each weighs the same, whatever its number of
items)
         a, b      two candidates' values of the same items, higher is better; estimate = mean(a) -
         mean(b) θ, θ*     estimates [f] of scores, or of differences of scores, and their bootstrap
         replicates [B, f] cluster   items that stand or fall together, such as one article's:
         drawn, or flipped, as one

Two kinds of numbers must not be mixed. Values *of items* are paired: two candidates are tried on
the same ones. Values *of runs*, such as the scores of the top 20 of a search, are what papers
report; neighbours in λ are no independent draws, so an interval of theirs says how alike the top of
a search is, not how well it would do on other items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.floating] | Sequence[float]
Names = Sequence[str] | npt.NDArray[np.str_]
Floats = npt.NDArray[np.float64]
REPLICATES = 10_000
"""Bootstrap samples, and random flips of signs."""
PSEUDO_DIFFERENCES = 2.0
"""Differing items that are added to those seen, half of them each way."""
CHUNK = 1 << 22
"""Weights of bootstrap samples that are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a stratified sample of items says."""

    items: float
    """As many as all of equally large strata would have in which one item weighs as much as here.
    """
    freedom: float
    """Degrees of freedom: of clusters, not of items."""

    @classmethod
    def of(cls, items: Sequence[int], clusters: Sequence[int] | None = None) -> Size:
        """From the strata's numbers of items and, where these are not the same, of clusters."""
        free = sum(number - 1 for number in (clusters or items))
        return cls(
            items=math.sqrt(len(items) ** 3 / sum(number**-2.0 for number in items)),
            freedom=max(1, free),
        )


def resample_weights(
    clusters: npt.NDArray[np.int64], count: int, seed: int | Sequence[int]
) -> Iterator[npt.NDArray[np.float32]]:
    """How often each item stands in each bootstrap sample, some samples at a time, [samples, n].

    One cluster fewer is drawn than there are: the variance over the samples is then that of n - 1
    degrees of freedom (Rao and Wu, JASA 1988), which matters for few items.

    Args:
        clusters: each item's, counted from 0, [n].
        count: samples.
        seed: the same one gives the same samples, whatever the candidates.

    """
    draw, number = np.random.default_rng(seed), int(clusters.max()) + 1
    rows = max(1, CHUNK // max(number, clusters.size))
    alone = number == clusters.size and bool((clusters == np.arange(number)).all())
    for start in range(0, count, rows):
        now = min(rows, count - start)
        drawn = (
            draw.integers(number, size=(now, max(1, number - 1))) + number * np.arange(now)[:, None]
        )
        weights = (
            np.bincount(drawn.ravel(), minlength=now * number)
            .reshape(now, number)
            .astype(np.float32)
        )
        yield weights if alone else weights[:, clusters]


def standard_errors(replicates: Floats, size: Size) -> Floats:
    """Of the estimates, [f]: the replicates', and as if ``MORE`` more items had differed, half of
    them each way.

    Without these, candidates that differ on three items, all in one's favour, would be told apart
    with certainty, and a score of 1 would have an interval of no width (Agresti and Min, Statistics
    in Medicine 2005).
    """
    errors: Floats = np.sqrt(replicates.var(axis=0) + PSEUDO_DIFFERENCES / size.items**2)
    return errors


def simultaneous(
    estimates: Floats, replicates: Floats, size: Size, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Intervals of which, in ``confidence`` of all studies, not one misses what it is of: max-|t|
    over the family.

    Args:
        estimates: [f]; scores, or differences of scores.
        replicates: of all of them in the same bootstrap samples, [B, f].
        size: of the sample.
        confidence: of the family.

    Returns:
        Lower and upper ends, [f].

    """
    critical = np.quantile(np.abs(_standardized(estimates, replicates)).max(axis=1), confidence)
    margin = _with_freedom(float(critical), size) * standard_errors(replicates, size)
    return estimates - margin, estimates + margin


def _standardized(estimates: Floats, replicates: Floats) -> Floats:
    """Replicates in standard errors from the estimate; 0 where none differs."""
    spread = replicates.std(axis=0)
    return (replicates - estimates) / np.where(spread > 0, spread, math.inf)


def _with_freedom(critical: float, size: Size) -> float:
    """A bound in standard errors as it must be where these are estimated from few: from normal to
    Student's t.
    """
    return float(stats.t.isf(stats.norm.sf(critical), size.freedom))


def p_values(estimates: Floats, replicates: Floats, size: Size) -> Floats:
    """Of no difference, two-sided, one by one, from the bootstrap's standard errors, [f]."""
    found: Floats = 2 * stats.t.sf(
        np.abs(estimates) / standard_errors(replicates, size), size.freedom
    )
    return found


def sign_flips(
    differences: Floats,
    clusters: npt.NDArray[np.int64] | None = None,
    *,
    seed: int | Sequence[int] = 0,
    count: int = REPLICATES,
) -> Floats:
    """Paired permutation tests of many differences with the same flips: two-sided p of no
    difference, [f].

    If neither of two candidates is better, an item's difference is as likely to be theirs as its
    opposite. Where one is better on one task and worse on another, the test errs on the safe side.

    Args:
        differences: by item, weighted so that a sum over items is the estimate, [n, f].
        clusters: each item's, counted from 0; None: each item by itself.
        seed: of the flips.
        count: random flips; 1 / (count + 1) is the least p.

    """
    groups = np.arange(len(differences)) if clusters is None else clusters
    sums = np.zeros((int(groups.max()) + 1, differences.shape[1]))
    np.add.at(sums, groups, differences)
    differ = np.flatnonzero(
        np.abs(sums).sum(axis=1)
    )  # flips are drawn for all: p must not depend on the family
    draw, seen = np.random.default_rng(seed), np.abs(sums.sum(axis=0)) * (1 - 1e-9)
    reached, rows = np.zeros(differences.shape[1]), max(1, CHUNK // len(sums))
    for start in range(0, count, rows):
        flips = draw.integers(2, size=(min(rows, count - start), len(sums)), dtype=np.int8)
        reached += (np.abs((flips[:, differ] * 2.0 - 1.0) @ sums[differ]) >= seen).sum(axis=0)
    found: Floats = (1 + reached) / (count + 1)
    return found


def holm(p: Values) -> Floats:
    """Holm's adjusted p-values: rejecting those below α errs at all in at most α of all families
    (1979), [f].
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    found = np.empty(values.size)
    found[order] = np.minimum(1.0, stepped)
    return found


def tie_set(
    estimates: Floats, replicates: Floats, size: Size, confidence: float = 0.95
) -> npt.NDArray[np.bool_]:
    """Which candidates cannot be told from the best: a set that holds the best in ``confidence`` of
    all studies, [k].

    Candidate i stays unless some j beats it by more than a best candidate would be beaten by
    chance: the largest of the standardized differences to i against the distribution of that
    largest one where all truths are as estimated (subset selection: Gupta, Technometrics 1965, with
    a bootstrap in the place of equal variances). The level is each candidate's own: only the true
    best must not be lost.
    """
    kept = np.ones(len(estimates), dtype=bool)
    for i in range(len(estimates)):
        others = np.arange(len(estimates)) != i
        if not others.any():
            break
        gaps, of_gaps = estimates[others] - estimates[i], replicates[:, others] - replicates[:, [i]]
        critical = np.quantile(_standardized(gaps, of_gaps).max(axis=1), confidence)
        beaten_by = gaps / standard_errors(of_gaps, size)
        kept[i] = beaten_by.max() <= _with_freedom(float(critical), size)
    return kept


def items_needed(
    error: float, items: int, gap: float, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Items with which a true gap of two candidates would be seen, at this power, by one two-sided
    paired test.

    Args:
        error: the standard error of the two's difference on ``items`` items.
        items: all tasks'; more of them in the same parts.
        gap: in the unit of the score.
        confidence: of the test.
        power: chance that the gap is found.

    """
    apart = float(stats.norm.ppf(0.5 + confidence / 2) + stats.norm.ppf(power))
    return math.ceil(items * (error * apart / gap) ** 2)


def selection_bias(estimates: Floats, replicates: Floats) -> float:
    """By how much the best of many estimates is expected to flatter itself (Efron's bootstrap of
    the optimism).

    In each bootstrap sample the best candidate is chosen anew; what it has there above its estimate
    is what choosing by the sample bought. Args: as in ``simultaneous``.
    """
    best = replicates.argmax(axis=1)
    return float((replicates[np.arange(len(best)), best] - estimates[best]).mean())
