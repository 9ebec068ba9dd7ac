"""Weighted mean of the tasks' metrics."""

from __future__ import annotations

from cabs_search.search.objectives.base import Objective
from cabs_search.spec.study import Spec, Weights
from cabs_search.stats.aggregate import WeightedSum


def weighted(spec: Spec) -> Objective:
    """Make the objective from the spec's weights."""
    given = spec.search.objective
    if not isinstance(given, Weights):
        example = ", ".join(f"{task}: 1" for task in spec.tasks)
        raise ValueError(
            f"search.objective: weights must be given, as in {{weights: {{{example}}}}}, but got"
            f" {given!r}"
        )
    total = sum(given.weights.values())
    listed = ", ".join(f"{task} {given.weights[task]:g}" for task in spec.tasks)
    return Objective(
        aggregate=WeightedSum({task: w / total for task, w in given.weights.items()}),
        text=f"The score is a weighted mean of the tasks' metrics; the weights: {listed}.",
    )
