"""Correlations of predicted and true numbers.

A correlation with a constant is undefined and counts as 0: such predictions tell nothing about the
labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cabs_search.metrics.base import Floats, Metric, Values, ratio


class Pearson(Metric):
    """Pearson's correlation of the values."""

    @property
    def is_quick(self) -> bool:
        """True: weighted sums are enough."""
        return True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the correlation; 0 if the values of one side are all equal."""
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        return float(np.corrcoef(predictions, labels)[0, 1])

    def weighted(self, predictions: Sequence[Values], labels: Values, weights: Values) -> Floats:
        """Compute from weighted sums, see ``Metric.weighted``."""
        wide = weights.astype(np.float64)
        return np.stack([_weighted_pearson(values, labels, wide) for values in predictions], axis=1)


class Spearman(Metric):
    """Spearman's correlation: Pearson's of the ranks."""

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the correlation of ranks; ties share their mean rank."""
        from scipy.stats import rankdata

        return PEARSONR.compute(rankdata(predictions), rankdata(labels))


def _weighted_pearson(predictions: Values, labels: Values, weights: Values) -> Floats:
    """Compute Pearson's correlation on samples, [B]."""
    # Centred first: differences of large sums would lose digits.
    x, y = predictions - predictions.mean(), labels - labels.mean()
    count = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / count, weights @ y / count
    var_x, var_y = weights @ x**2 / count - mean_x**2, weights @ y**2 / count - mean_y**2
    covariance = weights @ (x * y) / count - mean_x * mean_y
    return ratio(covariance, np.sqrt(np.clip(var_x, 0, None) * np.clip(var_y, 0, None)))


PEARSONR = Pearson(name="pearsonr")
SPEARMANR = Spearman(name="spearmanr")
