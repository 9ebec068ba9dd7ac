"""Races: a candidate stops once it can no longer plausibly be the best."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from cabs_search.stats.race import is_beaten

ALPHA = 0.05
"""Most probability that the best candidate of a search is ever stopped."""
ROUNDS = "rounds"
"""A trial's attribute in memory: its score on each task of each round, NaN where it has none, a
list of lists.
"""


class RacePruner(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Compares a trial with all others on the rounds of items that both have."""

    def __init__(self, candidates: int) -> None:
        """Prepare for so many candidates in all."""
        self._candidates = candidates

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial is beaten, see ``is_beaten``; ValueError as there."""
        rivals = [
            rounds
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and (rounds := other.user_attrs.get(ROUNDS))
        ]
        own = np.array(trial.user_attrs[ROUNDS])
        scored = np.isfinite(own).all(axis=1)
        others = np.array(rivals).reshape(len(rivals), *own.shape)
        try:
            return is_beaten(own[scored], others[:, scored], self._candidates, ALPHA)
        except ValueError as error:
            raise ValueError(
                f"search.pruner: race cannot compare these metrics: {error}; take wilcoxon, asha or"
                " median"
            ) from error


def race(candidates: int) -> optuna.pruners.BasePruner:
    """Make the pruner for so many candidates in all."""
    return RacePruner(candidates)
