"""Metric of the worst task."""

from __future__ import annotations

from cabs_search.search.objectives.base import Objective
from cabs_search.spec.study import Spec
from cabs_search.stats.aggregate import Smallest


def worst(spec: Spec) -> Objective:  # noqa: ARG001
    """Make the objective."""
    return Objective(aggregate=Smallest(), text="The score is the lowest of the tasks' metrics.")
