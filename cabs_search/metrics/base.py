"""Base class of metrics: a number from predictions and labels, exact and on bootstrap samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
"""One value per item, [items]: int64, float64, or objects (texts, lists)."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A score of predictions against labels; more is better.

    Frozen, so that specs that hold one can be pickled and compared.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The task's ``metric_arguments``."""
    is_mean: ClassVar[bool] = False
    """True if the metric is the mean of the scores that a kind records of its items."""
    takes_arguments: ClassVar[bool] = False

    @abstractmethod
    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the metric over all items; 0 where it is undefined."""

    def of(self, scores: Values, predictions: Values, labels: Values) -> float:
        """Return the metric over all items from what is on record of them, each [items]."""
        return self.compute(predictions, labels)

    @property
    def is_quick(self) -> bool:
        """True if ``weighted`` works for the arguments, or the metric is a mean."""
        return self.is_mean

    def weighted(self, predictions: Sequence[Values], labels: Values, weights: Values) -> Floats:
        """Compute all samples at once from weights, see ``resample``; for quick metrics only."""
        raise NotImplementedError

    def with_arguments(self, arguments: Mapping[str, Any]) -> Self:
        """Return a copy that computes with these arguments.

        Raises:
            ValueError: the metric takes none.

        """
        if arguments and not self.takes_arguments:
            raise ValueError(f"it takes no arguments here, but got {', '.join(arguments)}")
        return replace(self, arguments=arguments)

    def resample(
        self,
        scores: Sequence[Values],
        predictions: Sequence[Values],
        labels: Values,
        weights: Values,
    ) -> Floats:
        """Compute the metric of k candidates on B bootstrap samples of their items.

        Args:
            scores: recorded scores of the items, k arrays of [n]; read if ``is_mean``.
            predictions: k arrays of [n].
            labels: [n].
            weights: number of times that each item is in each sample, [B, n].

        Returns:
            The metric, [B, k].

        """
        if self.is_mean:
            sums = weights @ np.stack(scores, axis=1)
            return np.asarray(sums / weights.sum(axis=1, keepdims=True), dtype=np.float64)
        if self.is_quick:
            return self.weighted(predictions, labels, weights)
        items = np.arange(len(labels))
        samples = [np.repeat(items, row.astype(np.int64)) for row in weights]
        return np.array([[self.compute(p[s], labels[s]) for p in predictions] for s in samples])


def ratio(above: Values, below: Values) -> Floats:
    """Divide element by element; 0 where the divisor is 0, as sklearn has it."""
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 1e-12)
