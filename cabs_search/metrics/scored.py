"""Metric whose scores are given to each item elsewhere, as by lm-evaluation-harness."""

from __future__ import annotations

from typing import ClassVar

from cabs_search.metrics.base import Metric, Values


class MeanScore(Metric):
    """Mean of the scores on record; predictions and labels do not tell them."""

    is_mean: ClassVar[bool] = True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return 0; only ``of`` knows the scores."""
        return 0.0

    def of(self, scores: Values, predictions: Values, labels: Values) -> float:
        """Return the mean of the scores."""
        return float(scores.mean(dtype=float))
