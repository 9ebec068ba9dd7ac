"""Findings of a refinement by gradient: what each level of λ gained on held-out items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cabs_search.common.formats import number
from cabs_search.merging.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RefinedLevel:
    """One level: parts of the model with a λ of their own."""

    level: str
    lambdas: int
    """Number of λ."""
    stopped_at: int | None = None
    """Number of steps that the folds chose, if it is less than there were."""
    kept: bool
    """True unless held-out items say that it is worse than the level before."""
    key: str
    """Key of its recipe, the mean of the folds'."""
    by_name: Mapping[str, float]
    """λ by ``EXPERT`` or ``EXPERT.GROUP``."""
    loss: tuple[float, float]
    """Loss of the folds' own λ on held-out items, before and after."""
    score: tuple[float, float]
    """Score of the folds' own λ on held-out items, before and after."""
    paths: tuple[tuple[float, ...], ...]
    """Loss on the fold's own items at each step, by fold."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Findings of refining a candidate."""

    start: str
    """Key of the candidate that was refined."""
    levels: tuple[RefinedLevel, ...]
    text: str
    objective: str
    """Quantity that was made small: loss, fitness (of CABS+) or entropy."""

    @property
    def kept(self) -> tuple[RefinedLevel, ...]:
        """Levels that were kept, coarse to fine; the last is recommended, once it is scored."""
        return tuple(level for level in self.levels if level.kept)


def refinement_of(note: Mapping[str, Any] | None) -> Refinement | None:
    """Read what a search noted of its refinement; None if it noted nothing."""
    if note is None:
        return None
    levels = tuple(_level(level, note["settings"]["steps"]) for level in note["levels"])
    return Refinement(
        start=Recipe.from_dict(note["start"]).key,
        levels=levels,
        text=_text(note, levels),
        objective=_objective(note),
    )


def _objective(note: Mapping[str, Any]) -> str:
    old = note["settings"].get("objective", "loss")  # all that old records have
    return str(note.get("objective", old))


def _level(found: Mapping[str, Any], most: int) -> RefinedLevel:
    recipe = Recipe.from_dict(found["recipe"])
    return RefinedLevel(
        level=found["level"],
        lambdas=found["lambdas"],
        stopped_at=steps if (steps := found.get("steps", most)) < most else None,
        kept=found["kept"],
        key=recipe.key,
        by_name=recipe.lambda_by_name,
        loss=tuple(found["loss"]),
        score=tuple(found["score"]),
        paths=tuple(tuple(path) for path in found["paths"]),
    )


def _text(note: Mapping[str, Any], levels: tuple[RefinedLevel, ...]) -> str:
    if error := note.get("error"):
        return f"λ could not be refined by gradient: {error}."
    objective = _objective(note)
    parts = []
    for one in levels:
        steps = "" if one.stopped_at is None else f", {one.stopped_at} steps"
        parts.append(
            f"{one.lambdas} λ ({one.level}{steps}): {objective} {one.loss[0]:.4f} to"
            f" {one.loss[1]:.4f}, score {number(one.score[0])} to {number(one.score[1])}"
            f"{'' if one.kept else ' (not kept)'}"
        )
    text = (
        "λ were refined by gradient, by two halves of the search items; each half's λ on the other"
        f" half: {'; '.join(parts)}."
    )
    if any(one.kept for one in levels):
        return f"{text} The mean of both, of the last level that was kept, is recommended."
    return f"{text} Both are clearly worse than the start, which stays recommended."
