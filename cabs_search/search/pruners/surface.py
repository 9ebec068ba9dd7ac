"""The surface sampler's own rule: a candidate stops if it is unlikely to be the best."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from cabs_search.search.samplers.surface import SurfaceSampler


class SurfacePruner(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Asks the study's sampler what more items of a trial are worth."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Tell whether the sampler expects too little of a trial."""
        sampler = study.sampler
        return isinstance(sampler, SurfaceSampler) and sampler.is_hopeless(study, trial)


def surface(candidates: int) -> optuna.pruners.BasePruner:  # noqa: ARG001
    """Make the pruner."""
    return SurfacePruner()
