"""Proposals that are the same merged model as a candidate: they get its score, and no items."""

from __future__ import annotations

from typing import Any

import optuna

from cabs_search.merging.recipe import Recipe
from cabs_search.search.ended import EndedCandidates
from cabs_search.search.known import KnownReader
from cabs_search.search.open_jobs import OpenJob, OpenJobs
from cabs_search.search.proposals import Proposer
from cabs_search.search.storage import StudyDatabase


class Twins:
    """Finds them among candidates that have ended or are being scored."""

    def __init__(
        self,
        ended: EndedCandidates,
        jobs: OpenJobs,
        known: KnownReader,
        proposer: Proposer,
        database: StudyDatabase,
    ) -> None:
        self._ended, self._jobs, self._known, self._proposer = ended, jobs, known, proposer
        self._database = database
        self._repeats: list[dict[str, Any]] = []
        """Proposals of a generation that were told and are not kept yet."""

    def is_repeated(self, recipe: Recipe, trial: optuna.Trial) -> bool:
        """Tell whether a proposal's merged model is known, or being scored; it gets that score."""
        if open_job := self._jobs.search_of(recipe):
            open_job.twins.append(trial)
            return True
        same = self._ended.same_model(recipe)
        if same is not None:
            self._tell(same, trial)
        return same is not None

    def tell_waiting(self, ended: OpenJob) -> None:
        """Tell proposals that waited for a candidate how it has ended."""
        for trial in ended.twins:
            self._tell(ended.job.recipe, trial)
        self.keep()

    def keep(self) -> None:
        """Keep what was told, for runs that go on."""
        for repeat in self._repeats:
            self._database.note_repeat(repeat)
        self._repeats = []

    def _tell(self, recipe: Recipe, trial: optuna.Trial) -> None:
        """Tell the sampler how a candidate has ended, as the end of another proposal."""
        scored = self._ended.scored.get(recipe.key)
        is_stopped = self._ended.is_stopped(recipe.key)
        if scored and self._proposer.is_of_generation(trial):
            # before the sampler notes the order of ends, which is of one run
            self._repeats.append(self._database.repeat_of(trial, recipe, scored.objectives))
        if scored or is_stopped:
            self._proposer.report(trial, self._known.read(recipe, scored))
        if is_stopped:
            self._proposer.stop(trial)
        else:
            self._proposer.tell(trial, scored.objectives if scored else None)
