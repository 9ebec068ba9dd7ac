"""Sampled runs of a study's finalists as jobs: each is one run of one model."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from cabs_search.kinds.generation import Sampling
from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.progress_file import Share
from cabs_search.record.sampled import SampledBlock, SampledTexts
from cabs_search.scoring.batches import blocks
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.open_jobs import MAX_WORKER_DEATHS
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Ints, Items, SplitName


class SampledRuns:
    """Source of the jobs of sampled runs; what is on record is not done again."""

    best: Scored | None = None
    """Nothing: runs choose no candidate."""
    stage_share: Share | None = None
    phase = "sampling"

    def __init__(
        self,
        spec: Spec,
        outcomes: Outcomes,
        items: Mapping[str, Items],
        recipes: Sequence[Recipe],
        samplings: Sequence[Sampling],
    ) -> None:
        """Find out which runs are missing.

        Args:
            spec: the study.
            outcomes: its record.
            items: confirm items of the tasks that generate, by task.
            recipes: the models, each once.
            samplings: temperature and seed of each run of a model.

        """
        self.spec, self._outcomes = spec, outcomes
        self._texts = SampledTexts(outcomes, spec.tasks)
        self.failure: str | None = None
        self.scored_items, self.workers = 0, 1
        self.blocks: Mapping[SplitName, list[dict[str, Ints]]] = {
            "confirm": blocks(items, spec.search.block)
        }
        runs = [self._job(recipe, sampling) for recipe in recipes for sampling in samplings]
        self.budget = len(runs)
        self._waiting = deque(job for job in runs if job.todo)
        self._open: dict[str, Job] = {}
        self._deaths: Counter[tuple[str, Sampling | None]] = Counter()

    def _job(self, recipe: Recipe, sampling: Sampling) -> Job:
        done = self._texts.done_blocks(recipe.key, sampling)
        todo = tuple(b for b in range(len(self.blocks["confirm"])) if b not in done)
        return Job(recipe=recipe, split="confirm", todo=todo, sampling=sampling)

    @property
    def done(self) -> int:
        """Runs that are whole."""
        return self.budget - len(self._waiting) - len(self._open)

    @property
    def left(self) -> int:
        """Runs that are not given out."""
        return len(self._waiting)

    @property
    def shares(self) -> list[Share]:
        """Runs that are whole, of all."""
        return [Share("run", self.done, self.budget)]

    @property
    def is_finished(self) -> bool:
        """True if there will be no more jobs."""
        return self.failure is not None or not (self._waiting or self._open)

    def connected(self) -> AbstractContextManager[None]:
        """Keep the record open inside the context."""
        return self._outcomes.kept_open()

    def next_job(self, job_id: str) -> Job | None:
        """Open the next run's job; None: nothing to do until another ends."""
        if self.failure is not None or not self._waiting:
            return None
        self._open[job_id] = self._waiting.popleft()
        return self._open[job_id]

    def record(self, results: Sequence[tuple[str, BlockResult]]) -> None:
        """Record blocks by job id, in one transaction."""
        found = []
        for job_id, result in results:
            job = self._open[job_id]
            assert job.sampling is not None, "all jobs are of sampled runs"
            self._open[job_id] = replace(job, todo=tuple(b for b in job.todo if b != result.block))
            self.scored_items += sum(len(one.scores) for one in result.outcomes.values())
            found.append(
                SampledBlock(
                    recipe=job.recipe.key,
                    sampling=job.sampling,
                    block=result.block,
                    outcomes=result.outcomes,
                )
            )
        self._texts.add(found)

    def finish(self, job_id: str, error: str | None = None) -> None:
        """Close a job; an error ends all, as its model was scored before."""
        job = self._open.pop(job_id)
        if error is not None:
            self.stop(f"{job.recipe} cannot be sampled: {error}")

    def put_back(self, job_id: str) -> None:
        """Keep a job for another worker."""
        self._waiting.appendleft(self._open.pop(job_id))

    def job_lost(self, job_id: str) -> None:
        """Keep the rest of a dead worker's job for another one, unless too many died over it."""
        job = self._open.pop(job_id)
        self._waiting.append(replace(job, alone=True))
        run = job.recipe.key, job.sampling
        self._deaths[run] += 1
        if self._deaths[run] > MAX_WORKER_DEATHS:
            self.stop(f"{job.recipe} cannot be sampled: {self._deaths[run]} workers died over it")

    def stop(self, reason: str) -> None:
        """End sampling."""
        self.failure = self.failure or reason
