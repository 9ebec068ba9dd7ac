"""Mean of the tasks' metrics."""

from __future__ import annotations

from cabs_search.search.objectives.base import Objective
from cabs_search.spec.study import Spec


def mean(spec: Spec) -> Objective:  # noqa: ARG001
    """Make the objective."""
    return Objective()
