"""Statistics of many candidates on one split's items: intervals, contrasts, tie set.

Tasks are strata that weigh the same. All candidates are in the same bootstrap samples and the same
random flips, so that any two are paired.

Shapes: k candidates, n items of all tasks, B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cabs_search.kinds.base import Outcome
from cabs_search.metrics.base import Values
from cabs_search.spec.task import Task
from cabs_search.stats.paired import mcnemar, paired, wilcoxon
from cabs_search.stats.simultaneous import (
    REPLICATES,
    Floats,
    Size,
    holm,
    p_values,
    resample_weights,
    selection_bias,
    sign_flips,
    simultaneous,
    standard_errors,
    tie_set,
)

SLOW_REPLICATES = 500
"""Bootstrap samples if some metric must be computed anew on each of them."""


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """Outcomes of one candidate on a split."""

    tasks: Mapping[str, Outcome]
    """Outcomes by task, all in the same order of items."""
    scores: Mapping[str, float]
    """Metric by task."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Difference of two candidates on the same items."""

    estimate: float
    """First score minus second."""
    interval: tuple[float, float]
    """95 % interval for the whole family of contrasts together."""
    p_value: float
    """Two-sided p of no difference: by permutation, or by bootstrap if some metric is no mean of
    items.
    """
    p_holm: float
    """p adjusted for the family."""
    wins: int
    """Items with a higher score of their own; a metric that is no mean may say otherwise."""
    losses: int
    effect: float
    """Cohen's d of paired differences: the estimate in standard errors, divided by √n."""
    tests: Mapping[str, float]
    """p of other tests of the same difference, not adjusted."""


class Panel:
    """Candidates scored on the same items; nothing is resampled before it is needed."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        seed: int,
        candidates: Mapping[str, ItemScores],
        labels: Mapping[str, Values],
        clusters: Mapping[str, npt.NDArray[np.int64]],
        replicates: int = REPLICATES,
    ) -> None:
        """Prepare the statistics.

        Args:
            tasks: tasks by name.
            seed: seed of bootstrap samples and flips.
            candidates: outcomes by the candidate's name.
            labels: what predictions are compared with, by task, [items].
            clusters: by task each item's cluster, counted from 0, [items]; the items of a cluster
                are drawn, or flipped, as one.
            replicates: bootstrap samples; SLOW_REPLICATES at most if a metric is slow.

        """
        self._tasks, self._seed, self._candidates = tasks, seed, candidates
        self._labels, self._clusters = labels, clusters
        self.names = list(candidates)
        self._place = {name: place for place, name in enumerate(self.names)}
        quick = all(task.measure.is_quick for task in tasks.values())
        self._replicates = replicates if quick else min(replicates, SLOW_REPLICATES)
        self._is_mean = all(task.measure.is_mean for task in tasks.values())
        self._item_counts = {task: len(labels[task]) for task in tasks}
        self._cluster_counts = {task: int(clusters[task].max()) + 1 for task in tasks}
        self.items = sum(self._item_counts.values())
        self._size = Size.of(list(self._item_counts.values()), list(self._cluster_counts.values()))

    @cached_property
    def scores(self) -> Floats:
        """Mean of the tasks' metrics, [k]."""
        candidates = self._candidates.values()
        means = [np.mean([c.scores[task] for task in self._tasks]) for c in candidates]
        return np.array(means)

    @cached_property
    def by_task(self) -> dict[str, Floats]:
        """Replicates of each task's metric, [B, k]."""
        return {task: self._resampled(place, task) for place, task in enumerate(self._tasks)}

    @cached_property
    def replicates(self) -> Floats:
        """Replicates of the scores, [B, k]."""
        mean: Floats = np.mean(list(self.by_task.values()), axis=0)
        return mean

    def _resampled(self, place: int, task: str) -> Floats:
        outcomes = [candidate.tasks[task] for candidate in self._candidates.values()]
        of = [o.scores for o in outcomes], [o.predictions for o in outcomes], self._labels[task]
        measure = self._tasks[task].measure
        samples = resample_weights(self._clusters[task], self._replicates, (self._seed, place))
        return np.concatenate([measure.resample(*of, weights) for weights in samples])

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return by name the 95 % intervals of the scores for all candidates together."""
        low, high = simultaneous(self.scores, self.replicates, self._size)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.names)}

    def own_interval(self, name: str, task: str | None = None) -> tuple[float, float]:
        """Return the 95 % interval of one score by itself, or of one task's metric."""
        i = self._place[name]
        if task is None:
            score, replicates, size = self.scores[i], self.replicates, self._size
        else:
            score, replicates = self._candidates[name].scores[task], self.by_task[task]
            size = Size.of([self._item_counts[task]], [self._cluster_counts[task]])
        low, high = simultaneous(np.array([score]), replicates[:, [i]], size)
        return float(low[0]), float(high[0])

    def contrasts(self, pairs: Sequence[tuple[str, str]], *, others: bool = True) -> list[Contrast]:
        """Compare the first of each pair with the second, as one family.

        Args:
            pairs: names of candidates.
            others: whether p of other tests is computed as well.

        """
        if not pairs:
            return []
        first, second = ([self._place[pair[side]] for pair in pairs] for side in (0, 1))
        estimates = self.scores[first] - self.scores[second]
        replicates = self.replicates[:, first] - self.replicates[:, second]
        low, high = simultaneous(estimates, replicates, self._size)
        errors = standard_errors(replicates, self._size)
        p = self._p_values(first, second, estimates, replicates)
        adjusted = holm(p)
        return [
            Contrast(
                estimate=float(estimates[i]),
                interval=(float(low[i]), float(high[i])),
                p_value=float(p[i]),
                p_holm=float(adjusted[i]),
                wins=int((self._values[a] > self._values[b]).sum()),
                losses=int((self._values[a] < self._values[b]).sum()),
                effect=float(estimates[i] / errors[i] / np.sqrt(self.items)),
                tests=self._other_tests(a, b, float(estimates[i]), replicates[:, [i]])
                if others
                else {},
            )
            for i, (a, b) in enumerate(zip(first, second, strict=True))
        ]

    @cached_property
    def _values(self) -> Floats:
        """Items' scores of all tasks, [k, n]."""
        candidates = self._candidates.values()
        values = [np.concatenate([c.tasks[t].scores for t in self._tasks]) for c in candidates]
        return np.array(values, np.float64)

    @cached_property
    def _is_zero_one(self) -> bool:
        return bool(np.isin(self._values, (0.0, 1.0)).all())

    @cached_property
    def _strata(self) -> npt.NDArray[np.str_]:
        return np.concatenate([np.full(n, task) for task, n in self._item_counts.items()])

    def _p_values(
        self, first: list[int], second: list[int], estimates: Floats, replicates: Floats
    ) -> Floats:
        if not self._is_mean:
            return p_values(estimates, replicates, self._size)
        sizes = np.concatenate([np.full(n, n) for n in self._item_counts.values()])
        weighted = self._values.T / sizes[:, None] / len(self._tasks)
        # clusters of different tasks are different ones
        clusters, start = [], 0
        for task in self._tasks:
            clusters.append(self._clusters[task] + start)
            start += self._cluster_counts[task]
        return sign_flips(
            weighted[:, first] - weighted[:, second], np.concatenate(clusters), seed=self._seed
        )

    def _other_tests(self, a: int, b: int, estimate: float, replicates: Floats) -> dict[str, float]:
        """Return p of tests that papers use.

        They take items as independent; McNemar's and Wilcoxon's take them as one task's.
        """
        x, y = self._values[a], self._values[b]
        tests = {"bootstrap": float(p_values(np.array([estimate]), replicates, self._size)[0])}
        if not self._is_mean:
            return tests
        tests["paired t"] = paired(x, y, self._strata).p_value
        if self._is_zero_one:
            return tests | {"McNemar exact": mcnemar(x, y).p_value}
        return tests | {"Wilcoxon": wilcoxon(x, y).p_value}

    def tied(self, names: Sequence[str]) -> list[str]:
        """Return those that cannot be told from the best of them, the best first."""
        places = [self._place[name] for name in names]
        is_tied = tie_set(self.scores[places], self.replicates[:, places], self._size)
        kept = [name for name, is_kept in zip(names, is_tied, strict=True) if is_kept]
        return sorted(kept, key=lambda name: -self.scores[self._place[name]])

    def error(self, a: str, b: str) -> float:
        """Return the standard error of two scores' difference."""
        difference = self.replicates[:, [self._place[a]]] - self.replicates[:, [self._place[b]]]
        return float(standard_errors(difference, self._size)[0])

    def standard_error(self, name: str) -> float:
        """Return the standard error of one score."""
        return float(standard_errors(self.replicates[:, [self._place[name]]], self._size)[0])

    def selection_bias(self) -> float:
        """Estimate how much choosing the best of all candidates flatters it."""
        return selection_bias(self.scores, self.replicates)
