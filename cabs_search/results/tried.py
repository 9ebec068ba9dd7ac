"""Candidates of a search in the order they were scored, for charts and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cabs_search.record.entries import Scored


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate with every search item scored."""

    place: int
    """Place in the order of completion, from 1."""
    key: str
    text: str
    method: str
    amount: str
    """n:m or density; empty if the method has neither."""
    order: str
    """Pruning order; empty if the method has none."""
    lambdas: Mapping[str, float]
    """λ by expert, or by expert and group."""
    shared: float | None
    """λ if it is one for all experts."""
    score: float
    rank: float
    """Number by which candidates are ranked: the score, or one other objective."""
    tasks: Mapping[str, float]
    """Metric by task."""
    items: int
    """Search items scored so far, this candidate's included."""


def tried_candidates(searched: Mapping[str, Scored]) -> list[Tried]:
    """Describe the candidates of a search, by key, in the order given."""
    items, tried = 0, []
    for place, (key, scored) in enumerate(searched.items(), 1):
        items += scored.items
        recipe = scored.recipe
        tried.append(
            Tried(
                place=place,
                key=key,
                text=str(recipe),
                method=recipe.method.name,
                amount=recipe.method.amount,
                order=">".join(recipe.order) if recipe.method.has_order else "",
                lambdas=recipe.lambda_by_name,
                shared=recipe.lambdas[0][1] if recipe.is_shared else None,
                score=scored.score,
                rank=scored.rank,
                tasks=dict(scored.scores),
                items=items,
            )
        )
    return tried
