"""Emulator of a landscape: what any λ in a space would score on every item.

Each item's log-odds are interpolated between recorded candidates by a Gaussian process with
Matérn's kernel, reduced between different settings (pruning order, n:m), and its own error is
added: the same for the same candidate, another for every other; as large everywhere, or smaller
near recorded candidates. An item is right where its log-odds are above a threshold of its own,
which fits the recorded scores best.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.landscapes import Landscape
from cabs_search.search.surface import log_odds
from cabs_search.stats.gaussian_process import matern

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LENGTHS, NOISES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0), (0.003, 0.01, 0.03, 0.1)
LIKENESSES = (0.7, 0.9, 0.98)
"""Correlation of candidates with the same λ and other settings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Emulator:
    """An interpolated landscape; items of both splits of all tasks stand side by side."""

    keys: list[str]
    """Names of the λ."""
    tasks: dict[str, Ints]
    """Columns of each task's items."""
    low: Floats
    high: Floats
    x: Floats
    arms: Ints
    """Number of each recorded candidate's settings, [candidates]."""
    kernel: tuple[float, float]
    """Length scale, and likeness of other settings."""
    means: Floats
    solution: Floats
    """[candidates, items]."""
    thresholds: Floats
    errors: Floats
    """Standard deviation of what the interpolation leaves, [items]."""
    inverse: Floats | None
    """Inverse of the recorded candidates' kernel matrix, if errors are smaller near them; with it
    the mean variance of a candidate that was left out.
    """
    left_out_variance: float
    left_out: float
    """Root mean square error of a left-out candidate's mean score."""
    spread: float
    """Standard deviation of candidates' mean scores."""

    def answer(self, lambdas: Floats, arm: int = 0) -> tuple[Floats, Floats]:
        """Return scores and log-odds of a candidate on all items."""
        x = self.scaled(lambdas)
        seed = zlib.crc32(np.append(np.round(lambdas, 6), arm).tobytes())
        noise = np.random.default_rng(seed).normal(size=len(self.means))
        odds = self.expected(x[None], np.array([arm]))[0]
        odds += self.errors * self._share(x, arm) * noise
        return (odds > self.thresholds).astype(float), odds

    def _share(self, x: Floats, arm: int) -> float:
        """Return the standard deviation at a candidate, as a share of one that was left out."""
        if self.inverse is None:
            return 1.0
        like = _kernel(x[None], np.array([arm]), self.x, self.arms, *self.kernel)[0]
        variance = max(0.0, 1 - like @ self.inverse @ like)
        return float(np.sqrt(variance / self.left_out_variance))

    def scaled(self, lambdas: Floats) -> Floats:
        """Return λ scaled to [-1, 1]."""
        x: Floats = 2 * (lambdas - self.low) / (self.high - self.low) - 1
        return x

    def expected(self, x: Floats, arms: Ints) -> Floats:
        """Return interpolated log-odds of candidates by λ in [-1, 1], [candidates, items]."""
        like = _kernel(x, arms, self.x, self.arms, *self.kernel)
        odds: Floats = self.means + like @ self.solution
        return odds


def emulate(landscape: Landscape, low: float, high: float, *, uneven: bool = False) -> Emulator:
    """Fit an emulator to a landscape whose λ are from ``low`` to ``high``.

    Args:
        landscape: what was recorded.
        low: the smallest λ.
        high: the largest.
        uneven: whether errors are smaller near recorded candidates.

    """
    odds, scores, tasks, at = [], [], {}, 0
    for task in landscape.scores["search"]:
        for split in ("search", "confirm"):
            odds.append(log_odds(landscape.losses[split][task].astype(float)))
            scores.append(landscape.scores[split][task].astype(float))
        count = odds[-1].shape[1] + odds[-2].shape[1]
        tasks[task] = np.arange(at, at + count)
        at += count
    z, s = np.concatenate(odds, axis=1), np.concatenate(scores, axis=1)
    lows, highs = (np.full(landscape.lambdas.shape[1], value) for value in (low, high))
    x, arms = 2 * (landscape.lambdas.astype(float) - lows) / (highs - lows) - 1, landscape.arms
    means = z.mean(axis=0)
    best = None
    several = len(set(arms.tolist())) > 1
    for kernel in itertools.product(LENGTHS, LIKENESSES if several else (1.0,)):
        like = _kernel(x, arms, x, arms, *kernel)
        for noise in NOISES:
            inverse = np.linalg.inv(like + noise * np.eye(len(x)))
            solution = inverse @ (z - means)
            predicted = z - solution / np.diag(inverse)[:, None]
            error = float(((predicted - z) ** 2).mean())
            if best is None or error < best[0]:
                best = (error, kernel, solution, predicted, inverse)
    assert best is not None
    _, kernel, solution, predicted, inverse = best
    thresholds = np.array([_threshold(predicted[:, i], s[:, i]) for i in range(z.shape[1])])
    emulated = predicted > thresholds
    per_task = [(emulated[:, c].mean(axis=1), s[:, c].mean(axis=1)) for c in tasks.values()]
    difference = np.mean([a - b for a, b in per_task], axis=0)
    return Emulator(
        keys=landscape.keys,
        tasks=tasks,
        low=lows,
        high=highs,
        x=x,
        arms=arms,
        kernel=kernel,
        means=means,
        solution=solution,
        thresholds=thresholds,
        errors=(predicted - z).std(axis=0),
        inverse=inverse if uneven else None,
        left_out_variance=float((1 / np.diag(inverse)).mean()),
        left_out=float(np.sqrt((difference**2).mean())),
        spread=float(np.mean([b for _, b in per_task], axis=0).std()),
    )


def _threshold(odds: Floats, scores: Floats) -> float:
    """Return the threshold at which odds agree best with scores, the nearest to 0 of these."""
    ordered = np.sort(odds)
    cuts = np.concatenate([[0.0], (ordered[1:] + ordered[:-1]) / 2])
    right = ((odds[None] > cuts[:, None]) == (scores[None] > 0.5)).mean(axis=1)
    return float(min(cuts[right >= right.max() - 1e-9], key=abs))


def _kernel(
    x: Floats, arms: Ints, other: Floats, other_arms: Ints, length: float, likeness: float
) -> Floats:
    distance = np.sqrt(((x[:, None] - other[None]) ** 2).sum(axis=2)) / length
    kernel: Floats = np.where(arms[:, None] == other_arms, 1.0, likeness) * matern(distance)
    return kernel
