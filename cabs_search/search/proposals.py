"""Proposals of a search: its queue first, then Optuna's sampler.

The sampler works on a study in memory, where a parameter costs no transaction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Expected
from cabs_search.search import space
from cabs_search.search.answered_trials import ANSWERS
from cabs_search.search.candidates import Candidates
from cabs_search.search.known import NOTHING, Known
from cabs_search.search.pruners.race import ROUNDS
from cabs_search.search.samplers.grid import GridSampler
from cabs_search.search.samplers.registry import find_sampler
from cabs_search.search.samplers.surface import SurfaceSampler
from cabs_search.search.storage import recipe_of
from cabs_search.stats.race import Floats

MOST_FRUITLESS = 10
"""Proposals in a row without a new point after which the space counts as exhausted."""
MOST_HOPELESS = 20
"""Proposals in a row that promise less than the noise, after which the search has converged."""
EXTRA_STARTUP_TRIALS = 4
"""Random trials, beside the space's baselines, before a sampler learns."""


class Proposal(NamedTuple):
    """A recipe to score."""

    recipe: Recipe
    trial: optuna.Trial
    """The sampler's, in memory."""
    trial_id: int | None = None
    """Its id in the database; None: not written yet."""
    expected: Expected | None = None
    """Its predicted score, if the sampler predicts."""


class Proposer:
    """The in-memory side of a search: what to try next."""

    def __init__(
        self,
        candidates: Candidates,
        sampler: str,
        earlier_trials: int,
        pruner: optuna.pruners.BasePruner | None = None,
        objectives: int = 1,
    ) -> None:
        """Make the sampler.

        Args:
            candidates: the space and what is scored first.
            sampler: its name.
            earlier_trials: trials of the study; they move the seed, or it would repeat.
            pruner: the rule that stops candidates, if there is one.
            objectives: how many numbers the search maximizes.

        """
        make_sampler = find_sampler(sampler)
        first = (*candidates.baseline_recipes, *candidates.starts)
        in_space = [space.params_of(candidates, recipe) for recipe in first]
        startup_trials = len(in_space) - in_space.count(None) + EXTRA_STARTUP_TRIALS
        self._candidates = candidates
        sampler_made = make_sampler(candidates.seed + earlier_trials, startup_trials)
        self._items_sampler = sampler_made if isinstance(sampler_made, SurfaceSampler) else None
        if self._items_sampler is not None:
            self._items_sampler.owners = space.owners(candidates)
        if isinstance(sampler_made, GridSampler):
            sampler_made.cover(space.branches(candidates))
        self._study = optuna.create_study(
            directions=["maximize"] * objectives,
            sampler=sampler_made,
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        self._queue: deque[tuple[Recipe, int | None]] = deque()

    @property
    def learns_from_items(self) -> bool:
        """True if the sampler wants results on items."""
        return self._items_sampler is not None

    def weigh(self, weights: Mapping[str, float] | None) -> None:
        """Tell a sampler that learns from items what tasks weigh in the score; None: the same."""
        if self._items_sampler is not None:
            self._items_sampler.weights = weights

    @property
    def is_exhausted(self) -> bool:
        """True if the sampler finds nothing new, even in parts of the space that were not seen."""
        return self._items_sampler is not None and self._items_sampler.fruitless >= MOST_FRUITLESS

    @property
    def has_converged(self) -> bool:
        """True if what may still be gained is less than the noise of a score."""
        return self._items_sampler is not None and self._items_sampler.hopeless >= MOST_HOPELESS

    def enqueue(self, recipe: Recipe, trial_id: int | None = None) -> None:
        """Propose a recipe before the sampler's; with its trial's id if it is in the database."""
        self._queue.append((recipe, trial_id))

    def propose(self) -> Proposal:
        """Return the next recipe of the queue, else the sampler's."""
        if self._queue:
            recipe, trial_id = self._queue.popleft()
            return Proposal(recipe, self._ask_for(recipe), trial_id)
        trial = self._study.ask()
        recipe = space.suggest(self._candidates, trial)
        return Proposal(recipe, trial, expected=self._expected(recipe, trial.number))

    @property
    def queued(self) -> int:
        """Number of recipes to propose before the sampler's."""
        return len(self._queue)

    def queue_only(self, recipes: Sequence[Recipe]) -> list[int]:
        """Propose these recipes and nothing else of the queue; return ids of the others' trials."""
        known = {recipe.key: trial_id for recipe, trial_id in self._queue}
        self._queue = deque((recipe, known.pop(recipe.key, None)) for recipe in recipes)
        return [trial_id for trial_id in known.values() if trial_id is not None]

    def _expected(self, recipe: Recipe, number: int) -> Expected | None:
        predicted = self._items_sampler.predicted.pop(number, None) if self._items_sampler else None
        if predicted is None:
            return None
        return Expected(recipe=recipe, mean=predicted.mean, deviation=predicted.deviation)

    def recommend(self, *, only_scored: bool = False) -> Expected | None:
        """Return the recipe with the best prediction; None if the sampler predicts nothing.

        Args:
            only_scored: whether to choose among candidates that are scored in full.

        """
        found = None
        if self._items_sampler is not None:
            found = self._items_sampler.recommend(self._study, only_scored=only_scored)
        if found is None:
            return None
        recipe = space.suggest(self._candidates, FixedTrial(found.params))
        return Expected(recipe=recipe, mean=found.mean, deviation=found.deviation)

    def _ask_for(self, recipe: Recipe) -> optuna.Trial:
        """Return a trial with a recipe's parameters, so that the sampler learns from its score."""
        params = space.params_of(self._candidates, recipe)
        self._study.enqueue_trial(params or {})
        trial = self._study.ask()
        if params is not None:
            space.suggest(self._candidates, trial)
        return trial

    def is_of_generation(self, trial: optuna.Trial) -> bool:
        """Tell whether a proposal's sampler works by generations, of which it counts for one."""
        in_memory = self._study.get_trials(deepcopy=False)[trial.number]
        return any(name.endswith(":generation") for name in in_memory.system_attrs)

    def report(self, trial: optuna.Trial, known: Known) -> None:
        """Tell pruner and sampler what is known of a trial."""
        if known.rounds is not None:
            trial.set_user_attr(ROUNDS, known.rounds.tolist())
            trial.report(*_so_far(known.rounds))
        if known.answers is not None:
            trial.set_user_attr(ANSWERS, known.answers)

    def is_beaten(self, trial: optuna.Trial) -> bool:
        """Tell whether the pruner stops a trial at what was reported."""
        return bool(trial.should_prune())

    def stop(self, trial: optuna.Trial) -> None:
        """Tell the sampler that a trial was stopped; its score so far counts as its value."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def tell(self, trial: optuna.Trial, values: float | Sequence[float] | None) -> None:
        """Tell the sampler what the search maximizes of a proposal; None: it failed."""
        if values is None:
            trial.set_user_attr(ROUNDS, [])  # nobody loses a race to a candidate that failed
            trial.set_user_attr(ANSWERS, None)
        if values is None or not trial.params:
            # many samplers take the parameters that all complete trials have: a recipe outside
            # the space, which has none, would leave them nothing
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, values)

    def add(self, trial: FrozenTrial, known: Known = NOTHING) -> None:
        """Tell the sampler, and the pruner, a trial of an earlier run and what is known of it.

        The sampler learns from it if it has a score and the space its recipe. Its ranges become
        those of today, or samplers would take it for a trial of another space.
        """
        recipe = recipe_of(trial)
        params = space.params_of(self._candidates, recipe) if recipe else None
        is_scored = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        if not is_scored:
            return
        reports, attributes = dict[int, float](), dict[str, Any]()
        if known.rounds is not None:
            attributes[ROUNDS] = known.rounds.tolist()
            score, count = _so_far(known.rounds)
            reports[count] = score
        if params is None:
            if attributes:  # it still takes part in races
                self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))
            return
        if known.answers is not None:
            attributes[ANSWERS] = known.answers
        # the trial's own values are not rounded, as a recipe's are
        fixed = FixedTrial(params | trial.params)
        space.suggest(self._candidates, fixed)
        self._study.add_trial(
            create_trial(
                state=trial.state,
                values=trial.values,
                params=fixed.params,
                distributions=fixed.distributions,
                user_attrs=attributes,
                system_attrs=trial.system_attrs,
                intermediate_values=reports,
            )
        )


def _so_far(rounds: Floats) -> tuple[float, int]:
    """Return the mean score of the rounds that are scored, and their number."""
    scored = rounds[np.isfinite(rounds).all(axis=1)]
    return float(scored.mean()) if len(scored) else 0.0, len(scored)
