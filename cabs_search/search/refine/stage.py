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
    TaskValues,
    read_note,
)
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.refine.goals import goals_of
from cabs_search.search.refine.refinement import Refinement
from cabs_search.spec.study import Spec


class RefineStage:
    """Refines one candidate; does nothing if the spec asks for none."""

    def __init__(
        self,
        spec: Spec,
        tensors: Sequence[str],
        block_items: Sequence[int],
        outcomes: Outcomes,
        value: str,
    ) -> None:
        """Prepare.

        Args:
            spec: the study.
            tensors: names of the merged tensors.
            block_items: search items in each block.
            outcomes: the study's record.
            value: of a comparison, which search.

        """
        self._spec, self._tensors, self._block_items = spec, tensors, block_items
        self._outcomes, self._value = outcomes, value
        self._evaluations = Evaluations(outcomes) if spec.search.refine else None
        self._refinement: Refinement | None = None
        self._is_over = self._evaluations is None
        self._note: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """True if nothing is left to refine."""
        return self._is_over

    @property
    def has_begun(self) -> bool:
        """True if a candidate was chosen to be refined."""
        return self._refinement is not None

    @property
    def phase(self) -> str | None:
        """The stage of the work, for the progress bar; None if nothing is being refined."""
        return self._refinement.phase if self._refinement and not self._is_over else None

    @property
    def waiting(self) -> int:
        """Evaluations that wait for a worker."""
        return self._refinement.waiting if self._refinement and not self._is_over else 0

    def begin(self, best: Recipe | None, weights: Mapping[str, float] | None) -> None:
        """Refine what an earlier run began with, else the best candidate.

        Args:
            best: the best candidate; None: there is none.
            weights: weight of each task's metric in the score.

        """
        assert self._evaluations is not None
        assert self._spec.search.refine is not None
        known = read_note(self._outcomes, self._value)
        start = best if known is None or known["done"] else Recipe.from_dict(known["start"])
        if start is None or weights is None:
            self._is_over = True
            return
        scored = self._outcomes.scored_one("search", start)
        assert scored is not None, "what is refined is scored in full"
        self._refinement = Refinement(
            self._spec.search.refine,
            start,
            self._tensors,
            len(self._block_items),
            weights,
            partial(goals_of, self._spec.tasks, scored.losses),
            self._evaluations,
            self._spec.space.groups,
        )
        if known is None or known["start"] != start.as_dict():
            self._keep()

    def _keep(self) -> None:
        assert self._evaluations is not None
        assert self._refinement is not None
        note = self._refinement.as_dict() | self._note | {"done": self._is_over}
        self._evaluations.keep(self._value, note)

    def next_job(self) -> Job | None:
        """Give out an evaluation; None if others have to end first, or nothing is left."""
        if self._refinement is None or self._is_over:
            return None
        ask = self._refinement.next_ask()
        if ask is None:
            if self._refinement.is_done:
                self._is_over = True
                self._keep()
            return None
        return Job(
            recipe=ask.recipe,
            split="search",
            todo=(ask.block,),
            purpose=ask.purpose,
            temperatures=self._refinement.temperatures,
        )

    def record(self, results: Sequence[tuple[Job, BlockResult]]) -> None:
        """Record evaluations, in one transaction."""
        assert self._evaluations is not None
        assert self._refinement is not None
        evaluations = [self._evaluation(job, result) for job, result in results]
        seconds = sum(r.materialize_seconds + r.evaluate_seconds for _, r in results)
        self._evaluations.add(evaluations, seconds)
        for evaluation in evaluations:
            self._refinement.add(evaluation)

    def _evaluation(self, job: Job, result: BlockResult) -> Evaluation:
        items = self._block_items[result.block]
        none = np.empty(0, np.float32)
        tasks = {}
        for task in self._spec.tasks:
            outcome = result.outcomes.get(task)
            tasks[task] = TaskValues(
                losses=outcome.losses if outcome else none,
                scores=outcome.scores if outcome else none,
                gradients=result.gradients[task].ravel() if result.gradients else None,
                temperature=job.temperatures.get(task, 1.0) if outcome else BY_TEMPERATURE,
            )
        return Evaluation(
            recipe=job.recipe,
            block=result.block,
            items=items * (1 + BACKWARD) if job.purpose == "gradient" else items,
            tasks=tasks,
        )

    def fail(self, error: str) -> None:
        """Give up, and keep the reason."""
        if self._is_over:
            return  # another evaluation has failed before
        self._is_over = True
        self._note = {"error": error}
        self._keep()

    @property
    def known(self) -> set[str]:
        """Keys of recipes that an earlier run has refined."""
        note = read_note(self._outcomes, self._value) if self._evaluations else None
        levels = note["levels"] if note else []
        return {Recipe.from_dict(level["recipe"]).key for level in levels}

    @property
    def is_better(self) -> bool:
        """True if the refined candidate is what the search recommends."""
        return self._refinement is not None and self._refinement.is_better

    @property
    def refined(self) -> list[Recipe]:
        """What is to be scored as a candidate: the levels that were kept, coarse to fine."""
        return self._refinement.refined if self._refinement and not self._note else []
