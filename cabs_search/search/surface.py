"""Predictions of candidates' scores from every item scored so far.

Each task has a response surface (``stats/surface.py``), from which a candidate's score follows on
items it was never scored on. A Gaussian process corrects the surface by what it leaves unexplained
of the score, with errors of predictions that left the candidate out, so that what the surface
merely repeats counts for nothing. Their standard deviations are stretched until predictions of
left-out candidates cover what they promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
"""Most candidates that the Gaussian processes remember: the last ones given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Results of one candidate on the items of one task; NaN where an item is not scored."""

    scores: Floats
    """[items]."""
    responses: Floats
    """Log-odds of the right answer, or for want of them the scores, [items]."""
    metric: float | None = None
    """The task's metric, if all items are scored and it is not the mean of their scores."""


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


class ScoreModel:
    """The surfaces of all tasks and what corrects them."""

    def __init__(self, tasks: Sequence[str]) -> None:
        """Prepare for tasks, which weigh the same in the score."""
        self._tasks = tuple(tasks)
        self._surfaces: dict[str, Surface] = {}
        self._processes: dict[str, GaussianProcess] = {}
        self._noise: dict[str, float] = {}
        self._fitted = 0
        self.stretch = 1.0
        """Factor of standard deviations, from predictions of left-out candidates."""

    def fit(self, x: Floats, arms: Floats, answers: Sequence[Mapping[str, Answers]]) -> None:
        """Fit everything.

        Args:
            x: λ of each candidate, scaled to about [-1, 1], [candidates, λ].
            arms: 1 where a candidate has a choice, else 0, [candidates, choices].
            answers: results of each candidate by task.

        """
        features, scales = surface.polynomial(x, arms)
        is_new = len(answers) > 1.1 * self._fitted
        errors = []
        for task in self._tasks:
            own = [by_task[task] for by_task in answers]
            residual, noise, rows = self._residuals(task, features, scales, own)
            rows, residual = rows[-MOST_POINTS:], residual[-MOST_POINTS:]
            noise = noise[-MOST_POINTS:]
            earlier = None if is_new else self._processes.get(task)
            process = gaussian_process.fit(
                x[rows], arms[rows], residual, noise, earlier.kernel if earlier else None
            )
            self._processes[task] = process
            errors.append(process.left_out)
        if is_new:
            self._fitted = len(answers)
        # drawn towards 1, as if ten more predictions were as good as they promise
        count = sum(map(len, errors))
        covered = float(np.quantile(np.abs(np.concatenate(errors)), 0.9)) / NORMAL_90
        self.stretch = float(np.exp(count * np.log(max(covered, 0.3)) / (count + 10)))

    def _residuals(
        self, task: str, features: Floats, scales: Floats, answers: Sequence[Answers]
    ) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
        """Fit a task's surface.

        Returns:
            What it leaves unexplained of the score, the variance of that by chance of the items,
            and the candidates that have it.

        """
        if not len(answers[0].scores):  # nothing but values
            values = np.array([own.metric for own in answers], dtype=np.float64)
            self._noise[task] = 0.0
            return values, np.zeros(len(values)), np.arange(len(values))
        scores = np.stack([own.scores for own in answers])
        responses = np.stack([own.responses for own in answers])
        earlier = self._surfaces.get(task)
        if earlier is not None and len(earlier.mean) != len(scales):
            earlier = None
        is_graded = all(own.scores is own.responses for own in answers)
        fitted = surface.fit(features, scales, responses, None if is_graded else scores, earlier)
        self._surfaces[task] = fitted
        differences = scores - fitted.left_out
        counts = np.isfinite(differences).sum(axis=1)
        metrics = np.array([own.metric for own in answers], dtype=np.float64)
        rows = np.flatnonzero(np.isfinite(metrics))
        if len(rows):
            residual = metrics[rows] - fitted.left_out[rows].mean(axis=1)
        else:
            rows = np.flatnonzero(counts)
            residual = np.nanmean(differences[rows], axis=1)
        spread = float(np.nanvar(differences))
        self._noise[task] = spread / scores.shape[1]
        return residual, spread / counts[rows], rows

    def expect(self, x: Floats, arms: Floats) -> None:
        """Take candidates that are being scored as known: their scores will be as predicted."""
        for task in self._tasks if len(x) else ():
            self._processes[task] = self._processes[task].with_expected(x, arms, self._noise[task])

    def predict(self, x: Floats, arms: Floats) -> Predicted:
        """Predict the score of candidates, given as in ``fit``."""
        features, _ = surface.polynomial(x, arms)
        mean, variance, noise = np.zeros(len(x)), np.zeros(len(x)), 0.0
        weight = 1 / len(self._tasks)
        for task in self._tasks:
            correction, deviation = self._processes[task].predict(x, arms)
            mean += weight * correction
            if task in self._surfaces:
                mean += weight * self._surfaces[task].scores(features)
            variance += (weight * deviation) ** 2
            nugget = self._processes[task].kernel.nugget * self._processes[task].variance
            noise += weight**2 * (self._noise[task] + nugget)
        return Predicted(
            mean=mean,
            deviation=self.stretch * np.sqrt(variance),
            noise=self.stretch * float(np.sqrt(noise)),
        )
