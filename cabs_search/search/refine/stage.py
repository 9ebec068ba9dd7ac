"""The stage of a search that refines what it has found, between its last candidate and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cabs_search.merging.recipe import Recipe
from cabs_search.record.evaluations import (
    BACKWARD,
    BY_TEMPERATURE,
    Evaluation,
    Evaluations,
    Notes,
    TaskValues,
)
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.progress_file import Share
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.refine.check import most_items
from cabs_search.search.refine.evaluated import Evaluated
from cabs_search.search.refine.goals import goals_of
from cabs_search.search.refine.paths import Floats
from cabs_search.search.refine.refinement import Refinement
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Ints


class RefineStage:
    """Refines one candidate; does nothing if the spec asks for none."""

    def __init__(
        self,
        spec: Spec,
        tensors: Sequence[str],
        blocks: Sequence[Mapping[str, Ints]],
        outcomes: Outcomes,
        value: str,
    ) -> None:
        """Prepare.

        Args:
            spec: the study.
            tensors: names of the merged tensors.
            blocks: rows of the search items by task, of each block.
            outcomes: the study's record.
            value: of a comparison, which search.

        """
        self._spec, self._tensors, self._blocks = spec, tensors, blocks
        self._outcomes, self._notes = outcomes, Notes(outcomes, value)
        self._evaluations = Evaluations(outcomes) if spec.search.refine else None
        self._refinement: Refinement | None = None
        self._objective = ""
        self._spent = 0
        self.refined_ever = self._notes.refined
        """Keys of all recipes that were ever refined."""
        self.refined: list[Recipe] = []
        """Recipes to score as candidates in this run: levels that were kept, coarse to fine."""
        self.is_over = self._evaluations is None
        """True if nothing is left to refine."""

    @property
    def has_begun(self) -> bool:
        """True if a candidate was chosen to be refined."""
        return self._refinement is not None

    @property
    def phase(self) -> str:
        """The stage of the work, for the progress bar."""
        assert self._refinement is not None
        return self._refinement.phase

    @property
    def share(self) -> Share:
        """Items of this run's evaluations, of those that refining takes at most."""
        items = sum(len(rows) for block in self._blocks for rows in block.values())
        return Share("item", self._spent, most_items(self._spec, items, len(self._blocks)))

    @property
    def waiting(self) -> int:
        """Evaluations that wait for a worker."""
        return self._refinement.waiting if self._refinement and not self.is_over else 0

    def begin(
        self,
        best: Recipe | None,
        candidates: int,
        weights: Mapping[str, float] | None,
        at_one: Recipe | None,
    ) -> None:
        """Refine what an earlier run chose of as many candidates, else the best candidate.

        A refinement that failed is not tried again from the same start.

        Args:
            best: the best candidate; None: there is none.
            candidates: number of candidates that it is the best of.
            weights: weight of each task's metric in the score.
            at_one: the candidate with all λ = 1, if the objective compares losses with its.

        """
        assert self._evaluations is not None
        assert self._spec.search.refine is not None
        found, start = self._notes.found, self._notes.start
        has_ended = found is not None and start is not None and found["start"] == start.as_dict()
        if start is None or (has_ended and self._notes.candidates != candidates):
            start = best  # a fit to the same candidates may call another one the best
        failed = found["start"] if found is not None and "error" in found else None
        if start is None or weights is None or start.as_dict() == failed:
            self.is_over = True
            return
        self._notes.begin(start, candidates)
        scored = self._outcomes.scored_one("search", start)
        assert scored is not None, "what is refined is scored in full"
        settings, tasks = self._spec.search.refine, self._spec.tasks
        is_fitness = at_one is not None and settings.objective == "loss"
        self._objective = "fitness" if is_fitness else settings.objective
        compared = self._losses(at_one) if at_one is not None else None
        self._refinement = Refinement(
            settings,
            start,
            self._tensors,
            len(self._blocks),
            Evaluated(self._evaluations, len(self._tensors), weights, self._measure),
            partial(goals_of, settings.objective, tasks, scored.losses, at_one=compared),
            self._spec.space.groups,
            calibrates=settings.seeks_temperatures
            and at_one is None
            and any(task.kind.has_log_losses for task in tasks.values()),
        )

    def _losses(self, recipe: Recipe) -> dict[str, list[Floats]]:
        """Return a scored candidate's losses of each block's items, by task."""
        by_block = sorted(self._outcomes.block_results(recipe, "search").items())
        none = np.empty(0), np.empty(0)  # a task may have no item in a block
        return {
            task: [found.get(task, none)[1] for _, found in by_block] for task in self._spec.tasks
        }

    def _measure(self, task: str, predictions: Mapping[int, Sequence[Any]]) -> float:
        """Compute a task's metric from predictions by block."""
        own, labels = self._spec.tasks[task], self._outcomes.labels("search")[task]
        found = [one for block in sorted(predictions) for one in predictions[block]]
        rows = np.concatenate([self._blocks[block][task] for block in sorted(predictions)])
        return float(own.measure.compute(own.kind.values(found), labels[rows]))

    def next_job(self) -> Job | None:
        """Give out an evaluation; None if others have to end first, or nothing is left."""
        if self._refinement is None or self.is_over:
            return None
        try:
            ask = self._refinement.next_ask()
        except ValueError as error:
            self.fail(str(error))
            return None
        if ask is None:
            if self._refinement.is_done:
                self._end()
            return None
        return Job(
            recipe=ask.recipe,
            split="search",
            todo=(ask.block,),
            purpose=ask.purpose,
            temperatures=self._refinement.temperatures,
        )

    def _end(self) -> None:
        """Keep what was found. A level that moved no λ has its start's recipe, which is scored."""
        assert self._refinement is not None
        self.is_over = True
        for recipe in dict.fromkeys(self._refinement.refined):
            is_scored = self._outcomes.scored_one("search", recipe) is not None
            if not is_scored or recipe.key in self.refined_ever:
                self.refined.append(recipe)
        self.refined_ever |= {recipe.key for recipe in self.refined}
        self._note({})

    def record(self, results: Sequence[tuple[Job, BlockResult]]) -> int:
        """Record evaluations, in one transaction; return the number of their items."""
        assert self._evaluations is not None
        assert self._refinement is not None
        evaluations = [self._evaluation(job, result) for job, result in results]
        seconds = sum(r.materialize_seconds + r.evaluate_seconds for _, r in results)
        self._evaluations.add(evaluations, seconds)
        for evaluation in evaluations:
            self._refinement.add(evaluation.recipe, evaluation.block)
        items = sum(evaluation.items for evaluation in evaluations)
        self._spent += items
        return items

    def _evaluation(self, job: Job, result: BlockResult) -> Evaluation:
        items = sum(map(len, self._blocks[result.block].values()))
        none = np.empty(0, np.float32)
        tasks = {}
        for task in self._spec.tasks:
            outcome = result.outcomes.get(task)
            tasks[task] = TaskValues(
                losses=outcome.losses if outcome else none,
                scores=outcome.scores if outcome else none,
                predictions=outcome.predictions.tolist() if outcome else [],
                gradients=result.gradients[task].ravel() if result.gradients else None,
                temperature=job.temperatures.get(task, 1.0) if outcome else BY_TEMPERATURE,
                by_temperature=result.by_temperature[task] if result.by_temperature else None,
            )
        return Evaluation(
            recipe=job.recipe,
            block=result.block,
            items=items * (1 + BACKWARD) if job.purpose == "gradient" else items,
            tasks=tasks,
        )

    def fail(self, error: str) -> None:
        """Give up, and keep the reason."""
        if self._refinement is None or self.is_over:
            return  # another evaluation has failed before
        self.is_over = True
        self._note({"error": error})

    def _note(self, more: Mapping[str, str]) -> None:
        """Keep what was found, and the quantity that was made small."""
        assert self._refinement is not None
        found = self._refinement.as_dict() | {"objective": self._objective, **more}
        self._notes.end(found, self.refined_ever)
