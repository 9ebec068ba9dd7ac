"""Metric of texts by log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cabs_search.metrics.base import Floats, Metric, Values


class ByteProbability(Metric):
    """Geometric mean of the probabilities of all bytes of all texts, 0 to 1.

    Predictions are log-likelihoods of texts in nats, labels their numbers of bytes. Its inverse is
    the byte perplexity, minus its binary logarithm the bits per byte.
    """

    @property
    def is_quick(self) -> bool:
        """True: weighted sums are enough."""
        return True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the probability of a byte."""
        return float(np.exp(predictions.sum() / labels.sum()))

    def weighted(self, predictions: Sequence[Values], labels: Values, weights: Values) -> Floats:
        """Compute from weighted sums, see ``Metric.weighted``."""
        wide = weights.astype(np.float64)
        sums = wide @ np.stack(predictions, axis=1)
        return np.asarray(np.exp(sums / (wide @ labels)[:, None]), dtype=np.float64)


BYTE_PROBABILITY = ByteProbability(name="byte_probability")
