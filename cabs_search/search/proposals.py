"""Proposals of a search: its queue first, then Optuna's sampler.

The sampler works on a study in memory, where a parameter costs no transaction.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from cabs_search.merging.recipe import Recipe
from cabs_search.search import space
from cabs_search.search.candidates import Candidates
from cabs_search.search.pruners.race import ROUNDS
from cabs_search.search.samplers.registry import find_sampler
from cabs_search.search.storage import recipe_of
from cabs_search.stats.race import Floats

EXTRA_STARTUP_TRIALS = 4
"""Random trials, beside the space's baselines, before a sampler learns."""


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
        in_space = [space.params_of(candidates, r) for r in candidates.baseline_recipes]
        startup_trials = len(in_space) - in_space.count(None) + EXTRA_STARTUP_TRIALS
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

    def report(self, trial: optuna.Trial, rounds: Floats) -> None:
        """Tell the pruner a trial's scores so far, [rounds, tasks]."""
        trial.set_user_attr(ROUNDS, rounds.tolist())
        trial.report(float(rounds.mean()), len(rounds))

    def is_beaten(self, trial: optuna.Trial) -> bool:
        """Tell whether the pruner stops a trial at what was reported."""
        return bool(trial.should_prune())

    def stop(self, trial: optuna.Trial) -> None:
        """Tell the sampler that a trial was stopped; its score so far counts as its value."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def tell(self, trial: optuna.Trial, score: float | None) -> None:
        """Tell the sampler a proposal's score; None: it failed."""
        if score is None:
            trial.set_user_attr(ROUNDS, [])  # nobody loses a race to a candidate that failed
        if score is None or not trial.params:
            # many samplers take the parameters that all complete trials have: a recipe outside
            # the space, which has none, would leave them nothing
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, score)

    def add(self, trial: FrozenTrial, rounds: Floats | None = None) -> None:
        """Tell the sampler a trial of an earlier run, and the pruner its scores.

        The sampler learns from it if it has a score and the space its recipe. Its ranges become
        those of today, or samplers would take it for a trial of another space.
        """
        recipe = recipe_of(trial)
        params = space.params_of(self._candidates, recipe) if recipe else None
        is_scored = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        if not is_scored:
            return
        reports, attributes = {}, {}
        if rounds is not None:
            attributes[ROUNDS] = rounds.tolist()
            reports[len(rounds)] = float(rounds.mean())
        if params is None:
            if attributes:  # it still takes part in races
                self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))
            return
        # the trial's own values are not rounded, as a recipe's are
        fixed = FixedTrial(params | trial.params)
        space.suggest(self._candidates, fixed)
        self._study.add_trial(
            create_trial(
                state=trial.state,
                value=trial.value,
                params=fixed.params,
                distributions=fixed.distributions,
                user_attrs=attributes,
                system_attrs=trial.system_attrs,
                intermediate_values=reports,
            )
        )
