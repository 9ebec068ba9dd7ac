"""Candidates of a search that have ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

from optuna.trial import FrozenTrial, TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Scored
from cabs_search.search.candidates import ranked
from cabs_search.search.jobs import Finished

OnFinished: TypeAlias = Callable[[Finished], object]
STATES: dict[TrialState, Literal["complete", "stopped"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
}


class EndedCandidates:
    """Scores by recipe, and those without; tells each candidate to a listener as it ends."""

    def __init__(self, on_finished: OnFinished) -> None:
        self.scored: dict[str, Scored] = {}
        """Scores by recipe key, without per-item outcomes: those are on record."""
        self.best: Scored | None = None
        self._unscored: dict[str, bool] = {}
        """Candidates without a score by recipe key: True if stopped, False if failed."""
        self._by_sum: dict[str, Recipe] = {}
        """Candidates by ``Recipe.sum_key``; of several, the first with a score."""
        self._on_finished = on_finished

    def __len__(self) -> int:
        return len(self.scored) + len(self._unscored)

    def __contains__(self, recipe_key: str) -> bool:
        return recipe_key in self.scored or recipe_key in self._unscored

    def is_stopped(self, recipe_key: str) -> bool:
        """Tell whether a candidate was stopped."""
        return self._unscored.get(recipe_key, False)

    def same_model(self, recipe: Recipe) -> Recipe | None:
        """Return the candidate that is the same merged model: itself, another one, or None."""
        return recipe if recipe.key in self else self._by_sum.get(recipe.sum_key)

    def add(self, trial: FrozenTrial, recipe: Recipe, scored: Scored | None) -> None:
        """Keep a candidate's score, None unless it is complete, and tell the listener."""
        is_complete = trial.state == TrialState.COMPLETE
        if is_complete and scored is not None:
            light = replace(scored, tasks={})
            self.scored[recipe.key] = light
            self.best = ranked([light] if self.best is None else [light, self.best])[0]
            self._unscored.pop(recipe.key, None)
        elif recipe.key not in self.scored:
            self._unscored[recipe.key] = trial.state == TrialState.PRUNED
        same = self._by_sum.setdefault(recipe.sum_key, recipe)
        if same.key not in self.scored:
            self._by_sum[recipe.sum_key] = recipe
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        self._on_finished(
            Finished(
                number=trial.number,
                recipe=recipe,
                state=STATES.get(trial.state, "failed"),
                scored=scored,
                items=scored.items if scored else int(trial.user_attrs.get("items", 0)),
                partial_score=trial.value if trial.state == TrialState.PRUNED else None,
                materialize_seconds=float(trial.user_attrs.get("materialize_seconds", 0.0)),
                started=trial.datetime_start,
                ended=trial.datetime_complete,
                error=trial.user_attrs.get("error"),
            )
        )
