"""Recommendation of a search, and how well it predicted what candidates would score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cabs_search.common.formats import number
from cabs_search.record.entries import Expected, Scored
from cabs_search.results.scores import PartScore
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
    is_part: bool
    """True if the candidate was stopped: the score is on some items, and the interval is wider."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The candidate that a search recommends: the best by prediction, not by score."""

    key: str
    """Key of its recipe."""
    expected: float
    """Score on the search split that is predicted of it from everything scored."""
    predictions: tuple[Prediction, ...]
    """Predictions made before a candidate was scored."""
    text: str


def recommendation_of(
    recommended: Expected | None,
    expected: Sequence[Expected],
    searched: Mapping[str, Scored],
    stopped: Mapping[str, PartScore],
    *,
    is_refined: bool = False,
) -> Recommendation | None:
    """Compute a recommendation; None if the search recommends nothing.

    Args:
        recommended: what it recommends.
        expected: predictions of candidates.
        searched: candidates that are scored in full, by the recipe's key.
        stopped: scores of those that were stopped.
        is_refined: whether another candidate, refined from it, is recommended instead.

    """
    if recommended is None or recommended.recipe.key not in searched:
        return None
    predictions = []
    for one in expected:
        key = one.recipe.key
        if key in searched:
            predictions.append(_prediction(one, searched[key].score, 0.0, is_part=False))
        elif key in stopped:
            predictions.append(_prediction(one, *stopped[key], is_part=True))
    own = searched[recommended.recipe.key].score
    what = "By itself the search recommends" if is_refined else "Recommended is"
    text = (
        f"{what} the candidate with the best prediction from everything scored:"
        f" {number(recommended.mean)}; on the search items it scored {number(own)}."
    )
    if predictions:
        within = sum(one.low <= one.score <= one.high for one in predictions)
        text += (
            f" Of {len(predictions)} scores that were predicted before they were known, {within}"
            " are within their 90 % interval (wider where only a part of the items was scored)."
        )
    return Recommendation(
        key=recommended.recipe.key,
        expected=recommended.mean,
        predictions=tuple(predictions),
        text=text,
    )


def _prediction(one: Expected, score: float, chance: float, *, is_part: bool) -> Prediction:
    margin = NORMAL_90 * math.hypot(one.deviation, chance)
    return Prediction(
        text=str(one.recipe),
        expected=one.mean,
        low=one.mean - margin,
        high=one.mean + margin,
        score=score,
        is_part=is_part,
    )
