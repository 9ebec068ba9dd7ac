"""SQuAD 1.1's metrics of answers: exact match and F1 of words, against the nearest accepted one."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cabs_search.metrics.base import Metric, Values


class AnswerMetric(Metric):
    """The mean over questions of an answer's score, 0 to 1."""

    is_mean: ClassVar[bool] = True

    @abstractmethod
    def compare(self, answer: Sequence[str], accepted: Sequence[str]) -> float:
        """Score the words of an answer against those of one accepted answer."""

    def score(self, answer: str, accepted: Sequence[str]) -> float:
        """Score an answer against the nearest of the accepted ones, in SQuAD's normal form."""
        words = normal_form(answer).split()
        return max(self.compare(words, normal_form(text).split()) for text in accepted)

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the mean of the answers' scores."""
        pairs = zip(predictions, labels, strict=True)
        return float(np.mean([self.score(answer, accepted) for answer, accepted in pairs]))


class ExactMatch(AnswerMetric):
    """1 if all words are equal, else 0."""

    def compare(self, answer: Sequence[str], accepted: Sequence[str]) -> float:
        """Tell whether both have the same words in the same order."""
        return float(answer == accepted)


class WordF1(AnswerMetric):
    """F1 of words, each counted as often as both answers have it."""

    def compare(self, answer: Sequence[str], accepted: Sequence[str]) -> float:
        """Return F1; 0 without common words, also for two empty answers, as SQuAD 1.1 does."""
        common = sum((Counter(answer) & Counter(accepted)).values())
        return 2 * common / (len(answer) + len(accepted)) if common else 0.0


def normal_form(text: str) -> str:
    """Lower the case of an answer; remove punctuation, articles and repeated spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


ANSWER_F1 = WordF1(name="f1")
ANSWER_EXACT_MATCH = ExactMatch(name="exact_match")
