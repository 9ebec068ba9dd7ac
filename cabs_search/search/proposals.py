"""Proposals of a search: its queue first, then Optuna's sampler.

The sampler works on a study in memory, where a parameter costs no transaction.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.search import space
from cabs_search.search.candidates import Candidates
from cabs_search.search.pruners.race import ROUNDS
from cabs_search.search.samplers.registry import find_sampler
from cabs_search.stats.race import Floats

EXTRA_STARTUP_TRIALS = 4
"""Random trials, beside the baselines, before a sampler learns."""


class Proposal(NamedTuple):
    """A recipe to score."""

    recipe: Recipe
    trial: optuna.Trial
    """The sampler's, in memory."""
    trial_id: int | None = None
    """Its id in the database; None: not written yet."""


class Proposer:
    """The in-memory side of a search: what to try next."""

    def __init__(
        self,
        candidates: Candidates,
        sampler: str,
        earlier_trials: int,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        """Make the sampler; ``earlier_trials`` of the study move its seed, or it would repeat."""
        make_sampler = find_sampler(sampler)
        startup_trials = len(candidates.baseline_recipes) + EXTRA_STARTUP_TRIALS
        self._candidates = candidates
        self._study = optuna.create_study(
            direction="maximize",
            sampler=make_sampler(candidates.seed + earlier_trials, startup_trials),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        self._queue: deque[tuple[Recipe, int | None]] = deque()

    def enqueue(self, recipe: Recipe, trial_id: int | None = None) -> None:
        """Propose a recipe before the sampler's; with its trial's id if it is in the database."""
        self._queue.append((recipe, trial_id))

    def propose(self) -> Proposal:
        """Return the next recipe of the queue, else the sampler's."""
        if self._queue:
            recipe, trial_id = self._queue.popleft()
            return Proposal(recipe, self._ask_for(recipe), trial_id)
        trial = self._study.ask()
        return Proposal(space.suggest(self._candidates, trial), trial)

    def _ask_for(self, recipe: Recipe) -> optuna.Trial:
        """Return a trial with a recipe's parameters, so that the sampler learns from its score."""
        params = space.params_of(self._candidates, recipe)
        self._study.enqueue_trial(params or {})
        trial = self._study.ask()
        if params is not None:
            space.suggest(self._candidates, trial)
        return trial

    def is_beaten(self, trial: optuna.Trial, rounds: Floats) -> bool:
        """Tell the pruner a trial's scores, [rounds, tasks]; return whether to stop it."""
        trial.set_user_attr(ROUNDS, rounds.tolist())
        trial.report(float(rounds.mean()), len(rounds))
        return bool(trial.should_prune())

    def stop(self, trial: optuna.Trial) -> None:
        """Tell the sampler that a trial was stopped; its score so far counts as its value."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def tell(self, trial: optuna.Trial, score: float | None) -> None:
        """Tell the sampler a proposal's score; None: it failed."""
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        self._study.tell(trial, score, state)

    def add(self, trial: FrozenTrial, rounds: Floats | None = None) -> None:
        """Tell the sampler a trial of an earlier run, and the pruner its scores."""
        if rounds is not None:
            trial.set_user_attr(ROUNDS, rounds.tolist())
            trial.intermediate_values = {len(rounds): float(rounds.mean())}
        self._study.add_trial(trial)
