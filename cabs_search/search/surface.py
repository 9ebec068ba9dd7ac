"""Predictions of candidates' scores from every item scored so far.

Each task has a response surface (``stats/surface.py``), from which a candidate's score follows on
items it was never scored on. A Gaussian process corrects the surfaces' mean by what they leave
unexplained of the score, with errors of predictions that left the candidate out, so that what a
surface merely repeats counts for nothing. Its standard deviations are stretched until predictions
of left-out candidates cover what they promise.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cabs_search.stats import gaussian_process, surface
from cabs_search.stats.gaussian_process import GaussianProcess
from cabs_search.stats.surface import Surface

Floats = npt.NDArray[np.float64]

NORMAL_90 = 1.645
"""Standard deviations on each side of a normal distribution's mean that hold 90 %."""
MOST_LOG_ODDS = 8.0
"""Log-odds beyond which an answer is just sure."""
MOST_POINTS = 300
"""Most candidates that the Gaussian process remembers: those with the best predictions."""
GROWTH_OF_ANSWERS, GROWTH_OF_CANDIDATES = 0.02, 0.1
"""Share of new answers after which surfaces are fitted again, and of new candidates after which
the process's kernel is chosen again.
"""
LEAST_STRETCH = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Results of one candidate on the items of one task; NaN where an item is not scored."""

    scores: Floats
    """[items]."""
    responses: Floats
    """Log-odds of the right answer, or for want of them the scores, [items]."""
    metric: float | None = None
    """The task's metric, if all items are scored and it is not the mean of their scores."""

    @cached_property
    def count(self) -> int:
        """Number of items that are scored."""
        return int(np.isfinite(self.responses).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """Predicted scores of candidates."""

    mean: Floats
    """[candidates]."""
    deviation: Floats
    """Standard deviation of the expected score, [candidates]."""
    noise: float
    """Standard deviation that a score on all items has beside."""


def log_odds(losses: Floats) -> Floats:
    """Return the log-odds of right answers from minus the logs of their probabilities, in nats."""
    return np.clip(-np.log(np.expm1(np.clip(losses, 1e-9, 50.0))), -MOST_LOG_ODDS, MOST_LOG_ODDS)


class _Differences(NamedTuple):
    """Scores minus predictions of a task's items, all [candidates]."""

    counts: Floats
    """Number of items that are scored."""
    sums: Floats
    squares: Floats
    """Sums of squares."""
    expected: Floats
    """Mean prediction of all items; NaN if some are not scored."""


class _Fitted(NamedTuple):
    """A task's surface and what it was fitted to."""

    surface: Surface
    rows: Mapping[Hashable, int]
    """Rows of the candidates."""
    left_out: _Differences
    """To predictions that left the candidate out."""


class _Unexplained(NamedTuple):
    """Rest of a task's score that its surface does not explain."""

    residual: Floats
    """Score minus prediction, NaN where nothing is scored, [candidates]."""
    variance: Floats
    """Variance of the residual by chance of the items, [candidates]."""
    noise: float
    """Variance that a score on all items has by chance."""


@dataclass(kw_only=True, eq=False)
class ScoreModel:
    """The surfaces of all tasks and what corrects them."""

    tasks: Sequence[str]
    weights: Mapping[str, float] | None = None
    """Weights of the tasks in the score; None: the same for all."""
    stretch: float = 1.0
    """Factor of standard deviations, from predictions of left-out candidates."""
    _surfaces: dict[str, _Fitted] = field(default_factory=dict)
    _process: GaussianProcess | None = None
    _answered: int = 0
    """Number of answers when the surfaces were fitted."""
    _candidates: int = 0
    """Number of candidates when the process's kernel was chosen."""
    _noise: float = 0.0

    def fit(
        self,
        x: Floats,
        arms: Floats,
        answers: Sequence[Mapping[str, Answers]],
        keys: Sequence[Hashable],
    ) -> None:
        """Fit everything; what few new answers hardly change is kept from last time.

        Args:
            x: λ of each candidate, scaled to about [-1, 1], [candidates, λ].
            arms: 1 where a candidate has a choice, else 0, [candidates, choices].
            answers: results of each candidate by task.
            keys: names of the candidates, the same at every call.

        """
        features, scales = surface.polynomial(x, arms)
        by_task = [[one[task] for one in answers] for task in self.tasks]
        answered = sum(own.count for own in itertools.chain(*by_task))
        is_grown = answered > (1 + GROWTH_OF_ANSWERS) * self._answered
        if is_grown:
            self._answered = answered
        parts = []
        for task, own in zip(self.tasks, by_task, strict=True):
            if len(own[0].scores):
                earlier = self._surfaces.get(task)
                is_other = earlier is None or len(earlier.surface.mean) != len(scales)
                if is_grown or is_other:
                    start = None if is_other else earlier
                    self._surfaces[task] = _fit_surface(features, scales, own, keys, start)
            parts.append(_unexplained(features, own, keys, self._surfaces.get(task)))
        weights = np.array([self._weight(task) for task in self.tasks])
        residual = weights @ np.stack([part.residual for part in parts])
        variance = weights**2 @ np.stack([part.variance for part in parts])
        self._noise = float(weights**2 @ np.array([part.noise for part in parts]))
        rows = np.flatnonzero(np.isfinite(residual))
        if len(rows) > MOST_POINTS:
            best = np.argsort(-self._surface_means(features[rows]))[:MOST_POINTS]
            rows = rows[np.sort(best)]
        kernel = self._process.kernel if self._process else None
        if len(rows) > (1 + GROWTH_OF_CANDIDATES) * self._candidates:
            kernel, self._candidates = None, len(rows)
        self._process = gaussian_process.fit(
            x[rows], arms[rows], residual[rows], variance[rows], kernel
        )
        self.stretch = _stretch(self._process.left_out)

    @property
    def chance(self) -> float:
        """Standard deviation that a score on all items has by chance of the items."""
        return math.sqrt(self._noise)

    def expecting(self, x: Floats, arms: Floats) -> ScoreModel:
        """Return a model that takes candidates as known: their scores will be as predicted."""
        changed = copy.copy(self)
        if len(x):
            assert self._process is not None
            changed._process = self._process.with_expected(x, arms, self._noise)
        return changed

    def predict(self, x: Floats, arms: Floats) -> Predicted:
        """Predict the score of candidates, given as in ``fit``."""
        assert self._process is not None
        features, _ = surface.polynomial(x, arms)
        correction, deviation = self._process.predict(x, arms)
        nugget = self._process.kernel.nugget * self._process.variance
        return Predicted(
            mean=self._surface_means(features) + correction,
            deviation=self.stretch * deviation,
            noise=self.stretch * math.sqrt(self._noise + nugget),
        )

    def predict_means(self, x: Floats, arms: Floats) -> Floats:
        """Predict as ``predict`` does, without its standard deviations, [candidates]."""
        assert self._process is not None
        features, _ = surface.polynomial(x, arms)
        means: Floats = self._surface_means(features) + self._process.means(x, arms)
        return means

    def _surface_means(self, features: Floats) -> Floats:
        """Return the surfaces' predictions, [candidates]."""
        means = np.zeros(len(features))
        for task, fitted in self._surfaces.items():
            means += self._weight(task) * fitted.surface.scores(features).mean(axis=1)
        return means

    def _weight(self, task: str) -> float:
        return 1 / len(self.tasks) if self.weights is None else self.weights[task]


def _fit_surface(
    features: Floats,
    scales: Floats,
    answers: Sequence[Answers],
    keys: Sequence[Hashable],
    start: _Fitted | None,
) -> _Fitted:
    responses = np.stack([own.responses for own in answers])
    is_graded = all(own.scores is own.responses for own in answers)
    scores = None if is_graded else np.stack([own.scores for own in answers])
    fitted = surface.fit(features, scales, responses, scores, start.surface if start else None)
    left_out = _differences(responses if scores is None else scores, fitted.left_out)
    return _Fitted(fitted, {key: row for row, key in enumerate(keys)}, left_out)


def _differences(scores: Floats, predicted: Floats) -> _Differences:
    """Sum up what scores [candidates, items], NaN where there is none, differ from predictions."""
    differences = scores - predicted
    return _Differences(
        counts=np.isfinite(differences).sum(axis=1).astype(np.float64),
        sums=np.nansum(differences, axis=1),
        squares=np.nansum(differences**2, axis=1),
        expected=predicted.mean(axis=1),
    )


def _unexplained(
    features: Floats, answers: Sequence[Answers], keys: Sequence[Hashable], fitted: _Fitted | None
) -> _Unexplained:
    metrics = np.array([own.metric for own in answers], dtype=np.float64)
    if fitted is None:  # nothing but values
        return _Unexplained(metrics, np.zeros(len(metrics)), 0.0)
    rows = np.array([fitted.rows.get(key, -1) for key in keys])
    found = _Differences(*(part[rows] for part in fitted.left_out))
    # what was answered after the fit, the surface predicts without having seen it
    late = np.flatnonzero((rows < 0) | (found.counts != [own.count for own in answers]))
    if len(late):
        predicted = fitted.surface.scores(features[late])
        for at, row in enumerate(rows[late]):
            if row >= 0:
                seen = fitted.surface.left_out[row]
                predicted[at] = np.where(np.isnan(seen), predicted[at], seen)
        scores = np.stack([answers[row].scores for row in late.tolist()])
        for part, of_late in zip(found, _differences(scores, predicted), strict=True):
            part[late] = of_late
    total = found.counts.sum()
    spread = float(found.squares.sum() / total - (found.sums.sum() / total) ** 2)
    residual = found.sums / np.where(found.counts, found.counts, np.nan)
    if np.isfinite(metrics).any():
        residual = metrics - found.expected
    variance = spread / np.maximum(found.counts, 1)
    return _Unexplained(residual, variance, spread / len(answers[0].scores))


def _stretch(errors: Floats) -> float:
    """Return the factor at which 90 % intervals hold the next error in 90 % of cases.

    Args:
        errors: of predictions that left their candidate out, in standard deviations.

    Source: conformal prediction, Vovk, Gammerman and Shafer, Algorithmic Learning in a Random
    World (2005).

    """
    place = math.ceil(0.9 * (len(errors) + 1)) - 1
    is_known = place < len(errors)  # else there are too few, and the largest may be too small
    stretch = float(np.sort(np.abs(errors))[min(place, len(errors) - 1)]) / NORMAL_90
    return max(LEAST_STRETCH if is_known else 1.0, stretch)
