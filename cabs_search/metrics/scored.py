"""Metrics whose scores are given to each item elsewhere, as by lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cabs_search.metrics.base import Floats, Metric, Values

POOLED = ("inst_level_strict_acc", "inst_level_loose_acc")
"""Metrics of lm-evaluation-harness that are means over the parts of all items: IFEval's, over
instructions.
"""


def scored_metric(name: str) -> Metric:
    """Return the metric of a name, by which items were scored elsewhere."""
    return PooledScore(name=name) if name in POOLED else MeanScore(name=name)


class MeanScore(Metric):
    """Mean of the scores on record; predictions and labels do not tell them."""

    is_mean: ClassVar[bool] = True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return 0; only ``of`` knows the scores."""
        return 0.0

    def of(self, scores: Values, predictions: Values, labels: Values) -> float:
        """Return the mean of the scores."""
        return float(scores.mean(dtype=float))


class PooledScore(Metric):
    """Share of right parts among the parts of all items, so that an item counts by how many it has.

    Scores on record are shares of an item's own parts; a label is a list with their number.
    """

    @property
    def is_quick(self) -> bool:
        """True: weighted sums are enough."""
        return True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return 0; only ``of`` knows the scores."""
        return 0.0

    def of(self, scores: Values, predictions: Values, labels: Values) -> float:
        """Return the share of right parts."""
        sizes = _sizes(labels)
        return float(_right(scores, sizes).sum() / max(1, sizes.sum()))

    def resample(
        self,
        scores: Sequence[Values],
        predictions: Sequence[Values],
        labels: Values,
        weights: Values,
    ) -> Floats:
        """Compute from weighted sums, see ``Metric.resample``."""
        sizes, wide = _sizes(labels), weights.astype(np.float64)
        right = np.stack([_right(one, sizes) for one in scores], axis=1)
        return np.asarray((wide @ right) / np.maximum(1, wide @ sizes)[:, None], dtype=np.float64)


def _sizes(labels: Values) -> Floats:
    """Return the number of parts of each item."""
    return np.array([float(label[0]) for label in labels])


def _right(scores: Values, sizes: Floats) -> Floats:
    """Return the number of right parts of each item, a whole number; scores are rounded shares."""
    return np.rint(np.asarray(scores, dtype=np.float64) * sizes)
