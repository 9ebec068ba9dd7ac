"""Many candidates on one split's items: scores with bootstrap replicates, and every comparison that
is made of them.

Tasks are strata that weigh the same. All candidates stand in the same bootstrap samples and the
same random flips, so that any two are paired.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cabs_search.kinds.base import Outcome
from cabs_search.metrics.base import Values
from cabs_search.spec.study import Spec
from cabs_search.stats.paired import mcnemar, paired, wilcoxon
from cabs_search.stats.simultaneous import (
    REPLICATES,
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

REPLICATES, SLOW_REPLICATES = REPLICATES, 500
"""Bootstrap samples, and how many where some metric must be computed anew on each of them."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """One candidate on a split."""

    tasks: Mapping[str, Outcome]
    """Outcomes by task, all in the same order of items."""
    scores: Mapping[str, float]
    """The task's metric by task."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A candidate against another one on the same items."""

    estimate: float
    """How much higher its score is."""
    interval: tuple[float, float]
    """95 %, of the whole family of contrasts together."""
    p_value: float
    """Of no difference, two-sided: by permutation, or by bootstrap where some metric is no mean of
    items.
    """
    p_holm: float
    """Adjusted for the family."""
    wins: int
    """Items whose own score is higher; a metric that is no mean of these may say otherwise."""
    losses: int
    effect: float
    """Cohen's d of paired differences: the estimate in its standard errors, over the root of the
    number of items.
    """
    tests: Mapping[str, float]
    """p of the same by other tests, none adjusted."""


class Panel:
    """Candidates by name, scored on the same items."""

    def __init__(
        self,
        spec: Spec,
        found: Mapping[str, ItemScores],
        labels: Mapping[str, Values],
        clusters: Mapping[str, npt.NDArray[np.int64]],
        replicates: int = REPLICATES,
    ) -> None:
        """Nothing is resampled before it is asked for.

        Args:
            spec: the study, whose seed draws the samples.
            found: by name.
            labels: what predictions are held against by task, [n].
            clusters: by task which items stand or fall together, counted from 0, [n].
            replicates: bootstrap samples, SLOW_REPLICATES at the most where they are slow.

        """
        self._spec, self._found, self._labels, self._clusters = spec, found, labels, clusters
        self.names = list(found)
        self._place = {name: place for place, name in enumerate(self.names)}
        quick = all(task.measure.is_quick for task in spec.tasks.values())
        self._count = replicates if quick else min(replicates, SLOW_REPLICATES)
        self._is_mean = all(task.measure.is_mean for task in spec.tasks.values())
        counts = [len(labels[task]) for task in spec.tasks]
        self.items = sum(counts)
        self._sizes = dict(zip(spec.tasks, counts, strict=True))
        self._apart = {task: int(clusters[task].max()) + 1 for task in spec.tasks}
        self._size = Size.of(counts, list(self._apart.values()))

    @cached_property
    def scores(self) -> Floats:
        """Mean of the tasks' metrics, [k]."""
        return np.array(
            [np.mean([f.scores[task] for task in self._spec.tasks]) for f in self._found.values()]
        )

    @cached_property
    def by_task(self) -> dict[str, Floats]:
        """Replicates of each task's metric, [B, k]."""
        return {task: self._resampled(place, task) for place, task in enumerate(self._spec.tasks)}

    @cached_property
    def replicates(self) -> Floats:
        """Replicates of the scores, [B, k]."""
        mean: Floats = np.mean(list(self.by_task.values()), axis=0)
        return mean

    def _resampled(self, place: int, task: str) -> Floats:
        outcomes = [found.tasks[task] for found in self._found.values()]
        of = [o.scores for o in outcomes], [o.predictions for o in outcomes], self._labels[task]
        measure = self._spec.tasks[task].measure
        samples = resample_weights(self._clusters[task], self._count, (self._spec.seed, place))
        return np.concatenate([measure.resample(*of, weights) for weights in samples])

    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of the scores, by name, that hold for all of them together."""
        low, high = simultaneous(self.scores, self.replicates, self._size)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.names)}

    def own_interval(self, name: str, task: str | None = None) -> tuple[float, float]:
        """The 95 % interval of one score by itself: of all tasks' mean, or of one task's metric."""
        i = self._place[name]
        score = self.scores[i] if task is None else self._found[name].scores[task]
        of = self.replicates if task is None else self.by_task[task]
        size = self._size if task is None else Size.of([self._sizes[task]], [self._apart[task]])
        low, high = simultaneous(np.array([score]), of[:, [i]], size)
        return float(low[0]), float(high[0])

    def contrasts(self, pairs: Sequence[tuple[str, str]], *, others: bool = True) -> list[Contrast]:
        """The first of each pair against the second, as one family; ``others``: with other tests' p
        as well.
        """
        if not pairs:
            return []
        a, b = ([self._place[pair[side]] for pair in pairs] for side in (0, 1))
        estimates, replicates = (
            self.scores[a] - self.scores[b],
            self.replicates[:, a] - self.replicates[:, b],
        )
        low, high = simultaneous(estimates, replicates, self._size)
        errors = standard_errors(replicates, self._size)
        p = self._p_values(a, b, estimates, replicates)
        adjusted = holm(p)
        return [
            Contrast(
                estimate=float(estimates[i]),
                interval=(float(low[i]), float(high[i])),
                p_value=float(p[i]),
                p_holm=float(adjusted[i]),
                wins=int((self._values[a[i]] > self._values[b[i]]).sum()),
                losses=int((self._values[a[i]] < self._values[b[i]]).sum()),
                effect=float(estimates[i] / errors[i] / np.sqrt(self.items)),
                tests=self._other_tests(a[i], b[i], float(estimates[i]), replicates[:, [i]])
                if others
                else {},
            )
            for i in range(len(pairs))
        ]

    @cached_property
    def _values(self) -> Floats:
        """Items' scores of all tasks, [k, n]."""
        tasks = list(self._spec.tasks)
        return np.array(
            [np.concatenate([f.tasks[t].scores for t in tasks]) for f in self._found.values()],
            np.float64,
        )

    @cached_property
    def _is_zero_one(self) -> bool:
        return bool(np.isin(self._values, (0.0, 1.0)).all())

    @cached_property
    def _strata(self) -> npt.NDArray[np.str_]:
        return np.concatenate([np.full(n, task) for task, n in self._sizes.items()])

    def _p_values(
        self, a: list[int], b: list[int], estimates: Floats, replicates: Floats
    ) -> Floats:
        if not self._is_mean:
            return p_values(estimates, replicates, self._size)
        sizes = np.concatenate([np.full(n, n) for n in self._sizes.values()])
        weighted = self._values.T / sizes[:, None] / len(self._spec.tasks)
        clusters, first = [], 0
        for task in self._spec.tasks:
            clusters.append(self._clusters[task] + first)
            first += self._apart[task]
        return sign_flips(
            weighted[:, a] - weighted[:, b], np.concatenate(clusters), seed=self._spec.seed
        )

    def _other_tests(self, a: int, b: int, estimate: float, replicates: Floats) -> dict[str, float]:
        """What others would have used: items as independent and, by McNemar's and Wilcoxon's, as of
        one task.
        """
        x, y = self._values[a], self._values[b]
        found = {"bootstrap": float(p_values(np.array([estimate]), replicates, self._size)[0])}
        if not self._is_mean:
            return found
        found["paired t"] = paired(x, y, self._strata).p_value
        if self._is_zero_one:
            return found | {"McNemar exact": mcnemar(x, y).p_value}
        return found | {"Wilcoxon": wilcoxon(x, y).p_value}

    def tied(self, names: Sequence[str]) -> list[str]:
        """Those that cannot be told from the best of them, the best first."""
        places = [self._place[name] for name in names]
        kept = tie_set(self.scores[places], self.replicates[:, places], self._size)
        inside = [
            (name, self.scores[place])
            for name, place, keep in zip(names, places, kept, strict=True)
            if keep
        ]
        return [name for name, _ in sorted(inside, key=lambda pair: -pair[1])]

    def error(self, a: str, b: str) -> float:
        """The standard error of two scores' difference."""
        difference = self.replicates[:, [self._place[a]]] - self.replicates[:, [self._place[b]]]
        return float(standard_errors(difference, self._size)[0])

    def standard_error(self, name: str) -> float:
        """Of one score."""
        return float(standard_errors(self.replicates[:, [self._place[name]]], self._size)[0])

    def selection_bias(self) -> float:
        """See ``significance``; of all candidates here."""
        return selection_bias(self.scores, self.replicates)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Every value against every other one."""

    labels: tuple[str, ...]
    estimate: tuple[tuple[float, ...], ...]
    """The row's score minus the column's."""
    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]
    """95 %, of all pairs together."""
    p_holm: tuple[tuple[float, ...], ...]
    """Adjusted for all pairs; 1 on the diagonal."""


MOST_PAIRED = 40
"""Values of which every pair is compared."""


def matrix(panel: Panel, names: Sequence[str], labels: Sequence[str]) -> Matrix | None:
    """The paired differences of all pairs; None of one name, or more than MOST_PAIRED. ``labels``:
    their names.
    """
    if not 2 <= len(names) <= MOST_PAIRED:
        return None
    size = len(names)
    places = list(itertools.combinations(range(size), 2))
    values = {key: np.zeros((size, size)) for key in ("estimate", "low", "high")} | {
        "p_holm": np.ones((size, size))
    }
    contrasts = panel.contrasts([(names[i], names[j]) for i, j in places], others=False)
    for (i, j), found in zip(places, contrasts, strict=True):
        low, high = found.interval
        for key, there, back in (
            ("estimate", found.estimate, 0.0 - found.estimate),
            ("low", low, -high),
            ("high", high, -low),
            ("p_holm", found.p_holm, found.p_holm),
        ):
            values[key][i, j], values[key][j, i] = there, back
    return Matrix(
        labels=tuple(labels), **{key: tuple(map(tuple, of.tolist())) for key, of in values.items()}
    )
