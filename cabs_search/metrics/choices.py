"""Metrics of choices by log-likelihood, by the names of lm-evaluation-harness."""

from __future__ import annotations

from abc import abstractmethod

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


ACC = ByWhole(name="acc")
ACC_NORM = ByCharacter(name="acc_norm")
ACC_BYTES = ByByte(name="acc_bytes")
