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
        self._unscored: set[str] = set()
        """Recipe keys of candidates that failed or were stopped."""
        self._on_finished = on_finished

    def __len__(self) -> int:
        return len(self.scored) + len(self._unscored)

    def __contains__(self, recipe_key: str) -> bool:
        return recipe_key in self.scored or recipe_key in self._unscored

    def score(self, recipe_key: str) -> float | None:
        """Return a candidate's score; None if it failed or was stopped."""
        scored = self.scored.get(recipe_key)
        return scored.score if scored else None

    def add(self, trial: FrozenTrial, recipe: Recipe, scored: Scored | None) -> None:
        """Keep a candidate's score, None unless it is complete, and tell the listener."""
        is_complete = trial.state == TrialState.COMPLETE
        if is_complete and scored is not None:
            light = replace(scored, tasks={})
            self.scored[recipe.key] = light
            self.best = ranked([light] if self.best is None else [light, self.best])[0]
            self._unscored.discard(recipe.key)
        elif recipe.key not in self.scored:
            self._unscored.add(recipe.key)
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
