"""Metrics of choices and continuations by log-likelihood, named as in lm-evaluation-harness."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from cabs_search.metrics.base import Metric, Values
from cabs_search.metrics.classes import Accuracy


class ChoiceAccuracy(Accuracy):
    """Share of items whose right choice has the greatest log-likelihood per unit of length."""

    @abstractmethod
    def size(self, choice: str) -> int:
        """Return a choice's length."""


class ByWhole(ChoiceAccuracy):
    """Log-likelihoods as they are."""

    def size(self, choice: str) -> int:
        """Return 1: lengths do not count."""
        return 1


class ByCharacter(ChoiceAccuracy):
    """Log-likelihoods of a character."""

    def size(self, choice: str) -> int:
        """Return the number of characters."""
        return len(choice)


class ByByte(ChoiceAccuracy):
    """Log-likelihoods of a byte."""

    def size(self, choice: str) -> int:
        """Return the number of bytes in UTF-8."""
        return len(choice.encode())


class RightShare(Metric):
    """Mean share of the right choices in the likelihoods of all; predictions are the shares."""

    is_mean: ClassVar[bool] = True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the mean."""
        return float(predictions.mean())


ACC = ByWhole(name="acc")
ACC_NORM = ByCharacter(name="acc_norm")
ACC_BYTES = ByByte(name="acc_bytes")
ACC_OF_SHARES = RightShare(name="acc")
ACC_OF_CONTINUATIONS = Accuracy(name="acc")
"""Share of continuations of which every token is the likeliest."""
