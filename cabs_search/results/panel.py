"""Statistics of many candidates on one split's items: intervals, contrasts, tie set.

Tasks are strata; they weigh the same unless the score is another aggregate than their mean. All
candidates are in the same bootstrap samples and the same random flips, so that any two are paired.
Of a candidate that was scored on the first items only, the score is what is expected on all
(``partial_means``), and tests are on the items that two have.

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
from cabs_search.stats.aggregate import MEAN, Aggregate
from cabs_search.stats.paired import mcnemar, paired, wilcoxon
from cabs_search.stats.sequential import partial_means, size_of_first
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
    """Outcomes by task, all in the same order of items; perhaps of the first ones only, where all
    metrics are means.
    """
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
        aggregate: Aggregate = MEAN,
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
            aggregate: how the tasks' metrics make one score.

        """
        self._tasks, self._seed, self._candidates = tasks, seed, candidates
        self._labels, self._clusters, self._aggregate = labels, clusters, aggregate
        self.names = list(candidates)
        self._place = {name: place for place, name in enumerate(self.names)}
        quick = all(task.measure.is_quick for task in tasks.values())
        self._replicates = replicates if quick else min(replicates, SLOW_REPLICATES)
        self._weights = aggregate.weights(tasks)
        are_means = all(task.measure.is_mean for task in tasks.values())
        self._is_mean = are_means and self._weights is not None
        self._item_counts = {task: len(labels[task]) for task in tasks}
        self._cluster_counts = {task: int(clusters[task].max()) + 1 for task in tasks}
        self.items = sum(self._item_counts.values())
        counts = [[len(c.tasks[t].scores) for c in candidates.values()] for t in tasks]
        self._counts = np.array(counts)
        """Items that each candidate is scored on, [tasks, k]."""
        self._has_parts = bool((self._counts.sum(axis=0) < self.items).any())

    def items_of(self, name: str) -> int:
        """Return the number of items that a candidate is scored on."""
        return int(self._counts[:, self._place[name]].sum())

    @cached_property
    def scores(self) -> Floats:
        """Scores, [k]."""
        return self._aggregate(self.task_scores)

    @cached_property
    def task_scores(self) -> dict[str, Floats]:
        """Each task's metric, [k]."""
        if self._has_parts:
            return {t: partial_means(v, np.ones((1, len(v))))[0] for t, v in self._of_task.items()}
        candidates = self._candidates.values()
        return {task: np.array([c.scores[task] for c in candidates]) for task in self._tasks}

    @cached_property
    def _of_task(self) -> dict[str, Floats]:
        """Items' scores by task, NaN where there is none, [n, k]."""
        by_task = {}
        for task, count in self._item_counts.items():
            by_task[task] = np.full((count, len(self.names)), np.nan)
            for place, candidate in enumerate(self._candidates.values()):
                scores = candidate.tasks[task].scores
                by_task[task][: len(scores), place] = scores
        return by_task

    def _common(self, *sides: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the number of items that candidates have in common, [tasks, f].

        Args:
            sides: places of candidates, each [f].

        """
        counts = [self._counts[:, list(side)] for side in sides]
        return np.asarray(np.min(counts, axis=0), dtype=np.int64)

    def _size(self, *sides: Sequence[int], task: str | None = None) -> Size:
        """Return the size of the items that candidates have in common, of all tasks or one, [f]."""
        if self._weights is None and task is None:
            # the score is a task's metric, perhaps that of the smallest task
            task = min(self._item_counts, key=lambda name: self._item_counts[name])
        chosen = [place for place, name in enumerate(self._tasks) if task in (None, name)]
        clusters = [self._clusters[name] for name in self._tasks if task in (None, name)]
        ends = [tuple(column) for column in self._common(*sides)[chosen].T]
        weights = list(self._weights.values()) if self._weights and task is None else None
        sizes = {end: size_of_first(end, clusters, weights) for end in set(ends)}
        return Size.of_each([sizes[end] for end in ends])

    @cached_property
    def by_task(self) -> dict[str, Floats]:
        """Replicates of each task's metric, [B, k]."""
        return {task: self._resampled(place, task) for place, task in enumerate(self._tasks)}

    @cached_property
    def replicates(self) -> Floats:
        """Replicates of the scores, [B, k]."""
        return self._aggregate(self.by_task)

    def _resampled(self, place: int, task: str) -> Floats:
        outcomes = [candidate.tasks[task] for candidate in self._candidates.values()]
        of = [o.scores for o in outcomes], [o.predictions for o in outcomes], self._labels[task]
        measure = self._tasks[task].measure
        samples = resample_weights(self._clusters[task], self._replicates, (self._seed, place))
        if self._has_parts:
            return np.concatenate([partial_means(self._of_task[task], w) for w in samples])
        return np.concatenate([measure.resample(*of, weights) for weights in samples])

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return by name the 95 % intervals of the scores for all candidates together."""
        size = self._size(range(len(self.names)))
        low, high = simultaneous(self.scores, self.replicates, size)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.names)}

    def own_interval(self, name: str, task: str | None = None) -> tuple[float, float]:
        """Return the 95 % interval of one score by itself, or of one task's metric."""
        i = self._place[name]
        if task is None:
            score, replicates = self.scores[i], self.replicates
        else:
            score, replicates = self.task_scores[task][i], self.by_task[task]
        size = self._size([i], task=task)
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
        size = self._size(first, second)
        low, high = simultaneous(estimates, replicates, size)
        errors = standard_errors(replicates, size)
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
                effect=float(estimates[i] / errors[i] / np.sqrt(self._common([a], [b]).sum())),
                tests=self._other_tests(a, b, float(estimates[i]), replicates[:, [i]])
                if others
                else {},
            )
            for i, (a, b) in enumerate(zip(first, second, strict=True))
        ]

    @cached_property
    def _values(self) -> Floats:
        """Items' scores of all tasks, NaN where there is none, [k, n]."""
        return np.concatenate(list(self._of_task.values())).T

    @cached_property
    def _is_zero_one(self) -> bool:
        return bool(np.isin(np.nan_to_num(self._values), (0.0, 1.0)).all())

    @cached_property
    def _strata(self) -> npt.NDArray[np.str_]:
        return np.concatenate([np.full(n, task) for task, n in self._item_counts.items()])

    def _p_values(
        self, first: list[int], second: list[int], estimates: Floats, replicates: Floats
    ) -> Floats:
        if self._weights is None or not self._is_mean:
            return p_values(estimates, replicates, self._size(first, second))
        common, lengths = self._common(first, second), list(self._item_counts.values())
        weights = np.array(list(self._weights.values()))[:, None]
        shares = np.repeat(weights / common, lengths, axis=0)
        differences = np.nan_to_num(self._values[first] - self._values[second]).T
        # clusters of different tasks are different ones
        clusters, start = [], 0
        for task in self._tasks:
            clusters.append(self._clusters[task] + start)
            start += self._cluster_counts[task]
        return sign_flips(differences * shares, np.concatenate(clusters), seed=self._seed)

    def _other_tests(self, a: int, b: int, estimate: float, replicates: Floats) -> dict[str, float]:
        """Return p of tests that papers use.

        They take items as independent; McNemar's and Wilcoxon's take them as one task's.
        """
        size = self._size([a], [b])
        tests = {"bootstrap": float(p_values(np.array([estimate]), replicates, size)[0])}
        if self._weights is None or not self._is_mean:
            return tests
        both = ~np.isnan(self._values[a] + self._values[b])
        x, y = self._values[a][both], self._values[b][both]
        weights = len(self._tasks) * np.array(list(self._weights.values()))
        scale = np.repeat(weights, list(self._item_counts.values()))[both]
        tests["paired t"] = paired(scale * x, scale * y, self._strata[both]).p_value
        if self._is_zero_one:
            return tests | {"McNemar exact": mcnemar(x, y).p_value}
        return tests | {"Wilcoxon": wilcoxon(x, y).p_value}

    def tied(self, names: Sequence[str]) -> list[str]:
        """Return those that cannot be told from the best of them, the best first."""
        places = [self._place[name] for name in names]
        is_tied = tie_set(self.scores[places], self.replicates[:, places], self._whole_size)
        return self.best_first([n for n, is_kept in zip(names, is_tied, strict=True) if is_kept])

    @property
    def _whole_size(self) -> Size:
        items, clusters = list(self._item_counts.values()), list(self._cluster_counts.values())
        if self._weights is None:
            return Size.of([min(items)], [min(clusters)])
        return Size.of(items, clusters, list(self._weights.values()))

    def best_first(self, names: Sequence[str]) -> list[str]:
        """Sort by score."""
        return sorted(names, key=lambda name: -self.scores[self._place[name]])

    def row_scores(self, name: str) -> tuple[float, dict[str, float]]:
        """Return a candidate's score, and its metric by task."""
        place = self._place[name]
        by_task = {task: float(scores[place]) for task, scores in self.task_scores.items()}
        return float(self.scores[place]), by_task

    def error(self, a: str, b: str) -> float:
        """Return the standard error of two scores' difference, as it would be on all items."""
        first, second = [self._place[a]], [self._place[b]]
        difference = self.replicates[:, first] - self.replicates[:, second]
        share = self._common(first, second).sum() / self.items
        return float(standard_errors(difference, self._size(first, second))[0] * np.sqrt(share))

    def standard_error(self, name: str) -> float:
        """Return the standard error of one score."""
        place = [self._place[name]]
        return float(standard_errors(self.replicates[:, place], self._size(place))[0])

    def selection_bias(self) -> float:
        """Estimate how much choosing the best of all candidates flatters it."""
        return selection_bias(self.scores, self.replicates)
