"""Metrics of classes: accuracy, exact match, F1 and Matthews' correlation.

All of them follow from three counts per class, which makes bootstrap samples cheap: with weights of
shape [B, items], one matrix product gives the counts of every sample.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from cabs_search.metrics.base import Floats, Metric, Values, ratio

COUNTED_AVERAGES = ("binary", "micro", "macro", "weighted")
"""Averages of F1 that follow from counts per class."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts per class on B samples, each [B, classes]."""

    classes: Sequence[Any]
    """The classes as labels name them, sorted."""
    hits: Values
    """Correct predictions of the class."""
    predicted: Values
    labelled: Values

    @property
    def items(self) -> Values:
        """Number of labels in each sample, [B]."""
        return np.asarray(self.labelled.sum(axis=1))

    @property
    def accuracy(self) -> Floats:
        """Share of correct predictions, [B]."""
        return ratio(self.hits.sum(axis=1), self.items)


class ClassMetric(Metric):
    """A metric that follows from counts per class."""

    @abstractmethod
    def from_counts(self, counts: Counts) -> Floats:
        """Compute the metric on each sample, [B]."""

    @property
    def is_quick(self) -> bool:
        """True unless an argument cannot be computed from counts."""
        return True

    def weighted(self, predictions: Sequence[Values], labels: Values, weights: Values) -> Floats:
        """Compute from counts per class, see ``Metric.weighted``."""
        return self.weighted_parts(predictions, labels, weights, np.arange(len(labels)))

    def weighted_parts(
        self, predictions: Sequence[Values], labels: Values, weights: Values, items: Values
    ) -> Floats:
        """Compute on samples of items that have several classes each.

        Args:
            predictions: k arrays of [parts].
            labels: [parts].
            weights: number of times that each item is in each sample, [B, n].
            items: index of the item that a part belongs to, [parts].

        """
        lists = [values.tolist() for values in (labels, *predictions)]
        classes = sorted(set().union(*lists))
        codes = {name: code for code, name in enumerate(classes)}
        true, *guesses = (np.array([codes[name] for name in names]) for names in lists)

        def count(found: Values, counted: Values) -> Values:
            """Count each class in each sample, [B, classes]."""
            cells = (items * len(classes) + found)[counted]
            size = weights.shape[1] * len(classes)
            per_item = np.bincount(cells, minlength=size).reshape(-1, len(classes))
            return np.asarray(weights.astype(np.float64) @ per_item)

        every = np.ones(len(items), bool)
        labelled = count(true, every)
        results = [
            Counts(
                classes=classes,
                hits=count(guess, guess == true),
                predicted=count(guess, every),
                labelled=labelled,
            )
            for guess in guesses
        ]
        return np.stack([self.from_counts(counts) for counts in results], axis=1)


class Accuracy(ClassMetric):
    """Share of items that are right."""

    is_mean: ClassVar[bool] = True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the share of predictions that equal their labels."""
        return float(np.mean(predictions == labels))

    def from_counts(self, counts: Counts) -> Floats:
        """Return the share of hits, [B]."""
        return counts.accuracy


class F1(ClassMetric):
    """Harmonic mean of precision and recall, with the arguments of sklearn's ``f1_score``."""

    takes_arguments: ClassVar[bool] = True

    @property
    def is_quick(self) -> bool:
        """True if counts per class are enough for the arguments."""
        return self.arguments.keys() <= {"average"} and self._average in COUNTED_AVERAGES

    @property
    def _average(self) -> Any:
        return self.arguments.get("average", "binary")

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return sklearn's F1."""
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, zero_division=0.0, **self.arguments))

    def from_counts(self, counts: Counts) -> Floats:
        """Return the average of the classes' F1, [B]."""
        if self._average == "micro":  # equals accuracy where every item has one class
            return counts.accuracy
        either = counts.predicted + counts.labelled
        by_class = ratio(2 * counts.hits, either)
        if self._average == "macro":  # over the classes that the sample has
            return ratio(by_class.sum(axis=1), (either > 0).sum(axis=1))
        if self._average == "weighted":
            return ratio((by_class * counts.labelled).sum(axis=1), counts.items)
        is_positive = [name == 1 for name in counts.classes]
        return np.asarray(by_class[:, is_positive].sum(axis=1), dtype=np.float64)


class MatthewsCorrelation(ClassMetric):
    """Correlation of predicted and true classes; of several classes that of Gorodkin (2004)."""

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return sklearn's coefficient."""
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(labels, predictions))

    def from_counts(self, counts: Counts) -> Floats:
        """Return the coefficient from counts (Gorodkin 2004, eq. 8), [B]."""
        items, predicted, labelled = counts.items, counts.predicted, counts.labelled
        covariance = items * counts.hits.sum(axis=1) - (predicted * labelled).sum(axis=1)
        spread = (items**2 - (predicted**2).sum(axis=1)) * (items**2 - (labelled**2).sum(axis=1))
        return ratio(covariance, np.sqrt(spread))


@dataclass(frozen=True, kw_only=True)
class OverWords(Metric):
    """A metric of classes over all words of all items, where each item is a list of words."""

    metric: ClassMetric

    def with_arguments(self, arguments: Mapping[str, Any]) -> Self:
        """Return a copy whose metric computes with these arguments."""
        return replace(self, metric=self.metric.with_arguments(arguments))

    @property
    def is_quick(self) -> bool:
        """True if counts per class are enough."""
        return self.metric.is_quick

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the metric over words."""
        return self.metric.compute(_flat(predictions), _flat(labels))

    def weighted(self, predictions: Sequence[Values], labels: Values, weights: Values) -> Floats:
        """Compute from counts of words per class, see ``Metric.weighted``."""
        items = np.repeat(np.arange(len(labels)), [len(words) for words in labels])
        words = [_flat(values) for values in predictions]
        return self.metric.weighted_parts(words, _flat(labels), weights, items)


def _flat(lists: Values) -> Values:
    return np.array(list(itertools.chain.from_iterable(lists)))


ACCURACY = Accuracy(name="accuracy")
EXACT_MATCH = Accuracy(name="exact_match")
F1_OF_CLASSES = F1(name="f1")
MATTHEWS_CORRELATION = MatthewsCorrelation(name="matthews_correlation")
