"""Candidates of a search that have ended."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from typing import Literal, TypeAlias

from optuna.trial import FrozenTrial, TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
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
        self.failed: set[str] = set()
        """Recipe keys of candidates that failed."""
        self._stopped: dict[str, int] = {}
        """Items scored of candidates that were stopped, by recipe key; they may go on later."""
        self._by_sum: dict[str, Recipe] = {}
        """Candidates by ``Recipe.sum_key``; of several, the first with a score."""
        self._on_finished = on_finished

    def count(self, without: Set[str]) -> int:
        """Count those that have ended; one stopped and scored in full later has ended twice."""
        groups = (self.scored.keys(), self.failed, self._stopped.keys())
        return sum(len(keys - without) for keys in groups)

    def __contains__(self, recipe_key: str) -> bool:
        return any(recipe_key in ended for ended in (self.scored, self.failed, self._stopped))

    def is_stopped(self, recipe_key: str) -> bool:
        """Tell whether a candidate was stopped, and has not been scored in full since."""
        is_over = recipe_key in self.scored or recipe_key in self.failed
        return recipe_key in self._stopped and not is_over

    def same_model(self, recipe: Recipe) -> Recipe | None:
        """Return the candidate that is the same merged model: itself, another one, or None."""
        return recipe if recipe.key in self else self._by_sum.get(recipe.sum_key)

    def values(self, recipe_key: str) -> tuple[float, ...] | None:
        """Return what the search maximizes of a candidate; None if it failed or was stopped."""
        scored = self.scored.get(recipe_key)
        return scored.objectives if scored else None

    def add(self, trial: FrozenTrial, recipe: Recipe, scored: Scored | None) -> None:
        """Keep a candidate's score, None unless it is complete, and tell the listener."""
        items = scored.items if scored else int(trial.user_attrs.get("items", 0))
        if trial.state == TrialState.COMPLETE and scored is not None:
            light = replace(scored, tasks={})
            self.scored[recipe.key] = light
            self.best = ranked([light] if self.best is None else [light, self.best])[0]
            self.failed.discard(recipe.key)
            items -= self._stopped.get(recipe.key, 0)  # counted when it was stopped
        elif trial.state == TrialState.PRUNED:
            self._stopped[recipe.key] = items
        elif recipe.key not in self.scored:
            self.failed.add(recipe.key)
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
                items=items,
                partial_score=trial.value if trial.state == TrialState.PRUNED else None,
                materialize_seconds=float(trial.user_attrs.get("materialize_seconds", 0.0)),
                started=trial.datetime_start,
                # no earlier, though the clock was set back in between
                ended=max(trial.datetime_start, trial.datetime_complete),
                error=trial.user_attrs.get("error"),
            )
        )
