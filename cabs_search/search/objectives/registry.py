"""Objectives that ``search.objective`` may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
from cabs_search.search.candidates import Candidates
from cabs_search.search.objectives.awa import awa
from cabs_search.search.objectives.base import Objective
from cabs_search.search.objectives.mean import mean
from cabs_search.search.objectives.relative import relative
from cabs_search.search.objectives.tasks import tasks
from cabs_search.search.objectives.weighted import weighted
from cabs_search.search.objectives.worst import worst
from cabs_search.spec.study import Spec, Weights

MakeObjective: TypeAlias = Callable[[Spec], Objective]
"""Makes the objective of a spec."""

OBJECTIVES: dict[str, MakeObjective] = {
    "mean": mean,
    "weights": weighted,
    "relative": relative,
    "worst": worst,
    "awa": awa,
    "tasks": tasks,
}
SUMS = ("mean", "weights", "relative")
"""Objectives that are weighted sums of the tasks' metrics."""
REFINED = (*SUMS, "awa")
"""Objectives that λ are refined for."""


def objective_name(spec: Spec) -> str:
    """Return the name of a spec's objective."""
    given = spec.search.objective
    return "weights" if isinstance(given, Weights) else given


def objective_identity(spec: Spec) -> str:
    """Return a text that two objectives share if they are the same."""
    given = spec.search.objective
    if isinstance(given, Weights):
        return "weights " + ", ".join(f"{task} {w:g}" for task, w in sorted(given.weights.items()))
    return given


def objective_of(spec: Spec) -> Objective:
    """Make the objective of a spec, which does not know its references yet.

    Raises:
        ValueError: there is none of that name.

    """
    name = objective_name(spec)
    if name not in OBJECTIVES:
        known = " or ".join(map(repr, OBJECTIVES))
        raise ValueError(f"search.objective: Input should be {known}, but got {name!r}")
    return OBJECTIVES[name](spec)


def with_references(
    objective: Objective, find: Callable[[Recipe], Scored | None]
) -> Objective | None:
    """Return an objective that knows its references; None if one of them is not scored.

    Args:
        objective: the objective.
        find: gives a recipe's results on the search split.

    """
    scored = {recipe.key: find(recipe) for recipe in objective.references}
    known = {key: found for key, found in scored.items() if found is not None}
    return objective.given(known) if len(known) == len(scored) else None


def outsiders(objective: Objective, candidates: Candidates) -> frozenset[str]:
    """Return the keys of references that are no candidates."""
    if objective.ranks_references:
        return frozenset()
    return frozenset(r.key for r in objective.references if not candidates.is_baseline(r))
