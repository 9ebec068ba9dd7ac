"""Check that sampler and pruner of a spec can serve its objective."""

from __future__ import annotations

from cabs_search.search.objectives.registry import SUMS, objective_name, objective_of
from cabs_search.search.samplers.registry import FOR_ONE, FOR_SEVERAL, FOR_SUMS, SAMPLERS
from cabs_search.spec.study import Spec


def check_objective(spec: Spec) -> None:
    """Raise ValueError if there is no such objective, or sampler or pruner cannot serve it."""
    name, search = objective_name(spec), spec.search
    objective_of(spec)
    serve = {
        sampler
        for sampler in SAMPLERS
        if (name in SUMS or sampler not in FOR_SUMS)
        and (name != "tasks" or sampler not in FOR_ONE)
        and (name == "tasks" or sampler not in FOR_SEVERAL)
    }
    if search.sampler_used not in serve:
        raise ValueError(
            f"search.sampler: the objective {name} needs one of"
            f" {', '.join(s for s in SAMPLERS if s in serve)}, but got {search.sampler_used!r}"
        )
    if search.pruner_used is not None and name not in SUMS:
        raise ValueError(
            f"search.pruner: {search.pruner_used} needs the objective {', '.join(SUMS[:-1])} or"
            f" {SUMS[-1]}, but got {name}"
        )
