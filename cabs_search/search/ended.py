"""Candidates of a search that have ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from optuna.trial import FrozenTrial, TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Scored
from cabs_search.search.candidates import ranked
from cabs_search.search.jobs import Finished

OnFinished: TypeAlias = Callable[[Finished], object]


class EndedCandidates:
    """Scores and failures by recipe; tells each to a listener as it ends."""

    def __init__(self, on_finished: OnFinished) -> None:
        self.scored: dict[str, Scored] = {}
        """Scores by recipe key, without per-item outcomes: those are on record."""
        self.best: Scored | None = None
        self._failed: set[str] = set()
        self._on_finished = on_finished

    def __len__(self) -> int:
        return len(self.scored) + len(self._failed)

    def __contains__(self, recipe_key: str) -> bool:
        return recipe_key in self.scored or recipe_key in self._failed

    def score(self, recipe_key: str) -> float | None:
        """Return a candidate's score; None if it failed."""
        scored = self.scored.get(recipe_key)
        return scored.score if scored else None

    def add(self, trial: FrozenTrial, recipe: Recipe, scored: Scored | None) -> None:
        """Keep a candidate's score, None for a failure, and tell the listener."""
        is_complete = trial.state == TrialState.COMPLETE
        if is_complete and scored is not None:
            light = replace(scored, tasks={})
            self.scored[recipe.key] = light
            self.best = ranked([light] if self.best is None else [light, self.best])[0]
            self._failed.discard(recipe.key)
        elif recipe.key not in self.scored:
            self._failed.add(recipe.key)
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        self._on_finished(
            Finished(
                number=trial.number,
                recipe=recipe,
                state="complete" if is_complete else "failed",
                scored=scored,
                materialize_seconds=float(trial.user_attrs.get("materialize_seconds", 0.0)),
                started=trial.datetime_start,
                ended=trial.datetime_complete,
                error=trial.user_attrs.get("error"),
            )
        )
