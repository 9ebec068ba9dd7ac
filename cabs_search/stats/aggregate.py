"""One score from the metrics of several tasks.

Metrics are numbers or arrays of one shape, by task; the score has their shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Metrics: TypeAlias = Mapping[str, float | Floats]
"""Metrics by task."""


class Aggregate(Protocol):
    """A rule that makes one score of the tasks' metrics."""

    def __call__(self, metrics: Metrics) -> Floats:
        """Return the score."""

    def weights(self, tasks: Iterable[str]) -> dict[str, float] | None:
        """Return the tasks' weights, if the score is a weighted sum of their metrics."""


@dataclass(frozen=True)
class Mean:
    """Mean of the metrics."""

    def __call__(self, metrics: Metrics) -> Floats:
        """See ``Aggregate``."""
        mean: Floats = _stacked(metrics).mean(axis=0)
        return mean

    def weights(self, tasks: Iterable[str]) -> dict[str, float]:
        """See ``Aggregate``."""
        names = list(tasks)
        return dict.fromkeys(names, 1 / len(names))


@dataclass(frozen=True)
class WeightedSum:
    """Sum of the metrics, each times its task's weight, which may add up to anything."""

    weight: Mapping[str, float]

    def __call__(self, metrics: Metrics) -> Floats:
        """See ``Aggregate``."""
        weights = np.array([self.weight[task] for task in metrics])
        total: Floats = np.tensordot(weights, _stacked(metrics), axes=1)
        return total

    def weights(self, tasks: Iterable[str]) -> dict[str, float]:
        """See ``Aggregate``."""
        return {task: self.weight[task] for task in tasks}


@dataclass(frozen=True)
class Smallest:
    """The smallest of the metrics."""

    def __call__(self, metrics: Metrics) -> Floats:
        """See ``Aggregate``."""
        smallest: Floats = _stacked(metrics).min(axis=0)
        return smallest

    def weights(self, tasks: Iterable[str]) -> None:
        """See ``Aggregate``."""


def _stacked(metrics: Metrics) -> Floats:
    """Return all metrics in one array, [tasks, ...]."""
    return np.array(list(metrics.values()), dtype=np.float64)


MEAN = Mean()
