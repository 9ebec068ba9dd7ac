"""Group-sequential subset selection: rows are looked at on more and more items, some end early.

Symbols:
    n        items of a task
    k        rows: candidates, and others that are only compared with them
    B        bootstrap samples
    t        share of the items that a look has seen
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from cabs_search.stats.simultaneous import Floats, Size, standard_errors, standardized, with_freedom

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
SHARES = tuple(eighths / 8 for eighths in range(2, 9))
"""Shares of the items after which rows are looked at."""
LEAST_CLUSTERS = 20
"""Clusters of items of each task that the first look has seen at least: the bootstrap of fewer is
too rough.
"""
FORESEEN = 0.005
"""Chance of being told from the best by all items, below which a row ends as tied with it."""
CROSSED = 1e9
"""Stands for a difference larger than any critical value, in standard errors."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Scores of the rows on the first items of every task."""

    share: float
    """t; 1 at the last look."""
    estimates: Floats
    """[k]; of rows that ended before, any values."""
    replicates: Floats
    """Bootstrap replicates, [B, k], all looks in the same samples."""
    size: Size


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Outcome of the looks so far."""

    ended: Ints
    """Look at which each row ended, from 0; -1: it goes on, [k]."""
    tied: Bools
    """True for candidates that cannot be told from the best, [k]."""


def look_ends(ends: Sequence[Sequence[int]], clusters: Sequence[Ints]) -> list[int]:
    """Choose the blocks after which rows are looked at.

    Args:
        ends: items of each task in the first block, the first two, and so on.
        clusters: each task's clusters of items, [n].

    Returns:
        Numbers of blocks, the last one all; this alone if there are too few items or blocks.

    """
    count = len(ends)
    looks = sorted({math.ceil(count * share) for share in SHARES})
    seen = {end: clusters_of_first(ends[end - 1], clusters) for end in looks}
    return [end for end in looks if end == count or min(seen[end]) >= LEAST_CLUSTERS]


def first_items(
    values: Sequence[Floats],
    samples: Sequence[Callable[[], Iterable[npt.NDArray[np.float32]]]],
    ends: Sequence[Sequence[int]],
    clusters: Sequence[Ints],
) -> list[Look]:
    """Compute looks at the first items of each task.

    The bootstrap samples are those of all items, of which a look has the first: so replicates of
    two looks go together as the looks do.

    Args:
        values: scores of each task's items, [n, k]; NaN where a row is not scored.
        samples: draws each task's weights of items, [samples, n] at a time.
        ends: number of each task's items by look.
        clusters: each task's clusters of items, [n].

    """
    estimates: list[npt.NDArray[np.float32]] = []
    replicates: list[npt.NDArray[np.float32]] = []
    for place, (scores, draw) in enumerate(zip(values, samples, strict=True)):
        known, stops = np.nan_to_num(scores).astype(np.float32), [end[place] for end in ends]
        estimates.append(_means_up_to(stops, known, np.ones((1, len(known)), np.float32))[:, 0])
        replicates.append(np.concatenate([_means_up_to(stops, known, w) for w in draw()], axis=1))
    of_looks: Floats = np.mean(estimates, axis=0, dtype=np.float64)
    resampled: Floats = np.mean(replicates, axis=0, dtype=np.float64)
    whole = sum(map(len, values))
    return [
        Look(
            share=sum(end) / whole,
            estimates=of_looks[place],
            replicates=resampled[place],
            size=size_of_first(end, clusters),
        )
        for place, end in enumerate(ends)
    ]


def clusters_of_first(end: Sequence[int], clusters: Sequence[Ints]) -> list[int]:
    """Return the number of clusters in the first items of each task."""
    return [len(np.unique(of[:stop])) for of, stop in zip(clusters, end, strict=True)]


def size_of_first(
    end: Sequence[int], clusters: Sequence[Ints], weights: Sequence[float] | None = None
) -> Size:
    """Return the size of the first items of each task; ``weights`` as of ``Size.of``."""
    return Size.of(list(end), clusters_of_first(end, clusters), weights)


def _means_up_to(
    stops: Sequence[int], known: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return weighted means of the first items, [looks, samples, k]."""
    parts = list(zip([0, *stops], stops, strict=False))
    sums = np.cumsum([weights[:, a:b] @ known[a:b] for a, b in parts], axis=0)
    totals = np.cumsum([weights[:, a:b].sum(axis=1) for a, b in parts], axis=0)
    return np.asarray(sums / np.maximum(totals, 1)[:, :, None], dtype=np.float32)


def decide(
    looks: Sequence[Look], stays: Bools, is_candidate: Bools, confidence: float = 0.95
) -> Decisions:
    """Decide which rows end, look by look, and which candidates cannot be told from the best.

    A row ends where some candidate beats it by more than a best one would be beaten by chance: the
    rule of ``tie_set`` at every look, where chance is the share of bootstrap samples that crossed
    at this look or before. That share may be (1 - confidence) t²: error spending, Lan and DeMets,
    Biometrika 1983. So the true best is lost in 1 - confidence of all studies, over all looks.
    Candidates that ended still count there, with the samples of their last look: those that go on
    were the best of all.

    A row also ends, as tied, where it is foreseen to be tied with all items (``_is_foreseen``),
    unless it is the best so far. This cannot lose the best.

    Args:
        looks: those so far, at least one.
        stays: rows that are seen to the end whatever they score, [k].
        is_candidate: rows that may be the best; others end early too, but end no one, [k].
        confidence: chance that the tied hold the best.

    """
    count = len(stays)
    if not is_candidate.any():
        return Decisions(ended=np.full(count, -1), tied=is_candidate)
    ended, is_beaten = np.full(count, -1), np.zeros(count, dtype=bool)
    crossed = np.zeros((count, len(looks[0].replicates)), dtype=bool)
    of_ended = np.full(crossed.shape, -math.inf)
    for number, look in enumerate(looks):
        active = np.flatnonzero(ended < 0)
        rivals = active[is_candidate[active]]
        best = rivals[look.estimates[rivals].argmax()]
        spent = (1 - confidence) * look.share**2
        ends = np.full(count, look.share == 1)
        others = {i: rivals[rivals != i] for i in active.tolist()}
        chance = {i: _by_chance(look, i, them) for i, them in others.items() if them.size}
        for i, gaps in chance.items():
            largest = np.maximum(gaps.max(axis=1), of_ended[i])
            critical = np.quantile(np.where(crossed[i], CROSSED, largest), 1 - spent)
            crossed[i] |= largest > critical
            gap = _largest_gap(look, i, others[i])
            is_beaten[i] |= gap > with_freedom(float(critical), look.size)
            is_foreseen = i != best and _is_foreseen(gap, largest, look.share, confidence)
            ends[i] |= is_beaten[i] or is_foreseen
        ends &= (ended < 0) & (~stays | (look.share == 1))
        ended[ends] = number
        for i, gaps in chance.items():
            have_ended = gaps[:, ends[others[i]]]
            of_ended[i] = np.maximum(of_ended[i], have_ended.max(axis=1, initial=-math.inf))
    return Decisions(ended=ended, tied=is_candidate & ~is_beaten)


def _by_chance(look: Look, row: int, rivals: Ints) -> Floats:
    """Return by how much rivals beat a row by chance, in standard errors, [B, rivals]."""
    gaps = look.replicates[:, rivals] - look.replicates[:, [row]]
    return standardized(look.estimates[rivals] - look.estimates[row], gaps)


def _largest_gap(look: Look, row: int, rivals: Ints) -> float:
    """Return by how much a row is beaten at the most, in standard errors."""
    gaps = look.replicates[:, rivals] - look.replicates[:, [row]]
    errors = standard_errors(gaps, look.size)
    return float(((look.estimates[rivals] - look.estimates[row]) / errors).max())


def _is_foreseen(gap: float, by_chance: Floats, share: float, confidence: float) -> bool:
    """Tell whether a gap to the best will hardly be significant once all items are scored.

    In standard errors of all items, the gap will be normal with mean gap (t + (1 - t) s) / √t and
    variance (1 - t) + s (1 - t)² / t: what is seen stays, what comes follows the gap shrunk by s.
    That is the share of the squared gap above what chance makes of equal candidates.

    Sources: predictive power, Spiegelhalter, Freedman and Blackburn, Controlled Clinical Trials
    1986; positive-part shrinkage, James and Stein 1961.

    Args:
        gap: largest gap of a rival to the row, in standard errors.
        by_chance: the same in the bootstrap samples, [B].
        share: t.
        confidence: chance that the tied hold the best.

    """
    usual, critical = np.quantile(by_chance, [0.5, confidence])
    rest, shrunk = 1 - share, 1 - (usual / gap) ** 2 if gap > usual else 0.0
    mean = gap * (share + rest * shrunk) / math.sqrt(share)
    deviation = math.sqrt(rest + shrunk * rest**2 / share)
    return bool(mean + special.ndtri(1 - FORESEEN) * deviation <= critical)


def partial_means(values: Floats, weights: npt.NDArray[np.floating]) -> Floats:
    """Compute means over all items, also of rows that were scored on the first of them only.

    Such a row's mean is corrected by how much harder all items are than its own, as the rows show
    that have all: regression estimator of double sampling, Cochran, Sampling Techniques, 1977.

    Args:
        values: scores, [n, k]; NaN after a row's last item.
        weights: weights of items, [B, n]; ones for the estimates.

    Returns:
        Means, [B, k].

    """
    counts = (~np.isnan(values)).sum(axis=0)
    control = values[:, counts == len(values)]
    mean_of_whole = control.mean(axis=1) if control.size else np.zeros(len(values))
    means = np.empty((len(weights), values.shape[1]))
    of_all = _weighted(weights, mean_of_whole)
    for count in np.unique(counts):
        rows, own, seen = counts == count, weights[:, :count], mean_of_whole[:count]
        means[:, rows] = _weighted(own, values[:count, rows])
        if count < len(values):
            centred = seen - seen.mean()
            power = float(centred @ centred)
            slopes = centred @ values[:count, rows] / power if power > 0 else np.zeros(rows.sum())
            means[:, rows] += np.outer(of_all - _weighted(own, seen), slopes)
    return means


def _weighted(weights: npt.NDArray[np.floating], values: Floats) -> Floats:
    """Return weighted means over items, [B] or [B, k]."""
    totals = np.maximum(weights.sum(axis=1), 1)
    sums = weights @ values.astype(weights.dtype)
    means: Floats = (sums.T / totals).T.astype(np.float64)
    return means
