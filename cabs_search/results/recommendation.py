"""Recommendation of a search, and how well it predicted what candidates would score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cabs_search.common.formats import number
from cabs_search.record.outcomes import Expected, Scored
from cabs_search.search.surface import NORMAL_90


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Score of a candidate on the search split as it was predicted, and as it came out."""

    text: str
    """Recipe in words."""
    expected: float
    low: float
    high: float
    """Ends of the 90 % interval."""
    score: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The candidate that a search recommends: the best by prediction, not by score."""

    key: str
    """Key of its recipe."""
    expected: float
    """Score on the search split that is predicted of it from everything scored."""
    predictions: tuple[Prediction, ...]
    """Predictions made before a candidate was scored, of those that were scored in full."""
    text: str


def recommendation_of(
    recommended: Expected | None, expected: Sequence[Expected], searched: Mapping[str, Scored]
) -> Recommendation | None:
    """Compute a recommendation; None if the search recommends nothing.

    Args:
        recommended: what it recommends.
        expected: predictions of candidates.
        searched: candidates that are scored in full, by the recipe's key.

    """
    if recommended is None or recommended.recipe.key not in searched:
        return None
    predictions = tuple(
        Prediction(
            text=str(one.recipe),
            expected=one.mean,
            low=one.mean - NORMAL_90 * one.deviation,
            high=one.mean + NORMAL_90 * one.deviation,
            score=searched[one.recipe.key].score,
        )
        for one in expected
        if one.recipe.key in searched
    )
    own = searched[recommended.recipe.key].score
    text = (
        "Recommended is the candidate with the best prediction from everything scored:"
        f" {number(recommended.mean)}; on the search items it scored {number(own)}."
    )
    if predictions:
        within = sum(one.low <= one.score <= one.high for one in predictions)
        errors = np.array([one.score - one.expected for one in predictions])
        text += (
            f" Of {len(predictions)} scores that were predicted before they were known, {within}"
            " are within their 90 % interval; the typical error is"
            f" {100 * float(np.sqrt((errors**2).mean())):.1f} points."
        )
    return Recommendation(
        key=recommended.recipe.key, expected=recommended.mean, predictions=predictions, text=text
    )
