"""Wilcoxon's signed-rank test: a candidate stops if it is worse than the best on the same items."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from cabs_search.search.pruners.race import ROUNDS
from cabs_search.stats.race import Floats


class RoundsPruner(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Optuna's Wilcoxon pruner, whose steps are the rounds of items.

    Samplers read a trial's intermediate values as its score so far, so the rounds are not reported
    as such: they are taken from ``ROUNDS``, and so baselines outside the space are compared with
    too.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # the class counts as experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._test = optuna.pruners.WilcoxonPruner()

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial is worse than the best of those that have all rounds."""
        others = study.get_trials(deepcopy=False)
        rounds = [np.array(t.user_attrs.get(ROUNDS) or [[np.nan]]) for t in others]
        means = [float(own.mean()) for own in rounds]
        best = max((m for m in means if np.isfinite(m)), default=None)
        if best is None or others[means.index(best)].number == trial.number:
            return False
        pair = optuna.create_study(direction="maximize")
        pair.add_trial(_by_round(rounds[means.index(best)], TrialState.COMPLETE))
        own = _by_round(np.array(trial.user_attrs[ROUNDS]), TrialState.RUNNING)
        return bool(self._test.prune(pair, own))


def _by_round(rounds: Floats, state: TrialState) -> FrozenTrial:
    """Return a trial whose steps are the rounds that are scored, [rounds, tasks]."""
    scores = rounds.mean(axis=1)
    values = {int(step): float(scores[step]) for step in np.flatnonzero(np.isfinite(scores))}
    value = float(scores.mean()) if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=values)


def wilcoxon(candidates: int) -> optuna.pruners.BasePruner:  # noqa: ARG001
    """Make the pruner, with Optuna's p < 0.1."""
    return RoundsPruner()
