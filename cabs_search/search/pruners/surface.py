"""The surface sampler's own rule: every candidate stops after its first block of items."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial


class SurfacePruner(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Stops every trial: a surface learns more from another candidate than from more items."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        """Stop a trial."""
        return True


def surface(candidates: int) -> optuna.pruners.BasePruner:  # noqa: ARG001
    """Make the pruner."""
    return SurfacePruner()
