"""Jobs that were given out and have not ended; one may be cut into parts for several workers."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import optuna

from cabs_search.merging.recipe import Recipe
from cabs_search.search.jobs import Job
from cabs_search.tasks.items import SplitName

MAX_WORKER_DEATHS = 3
"""Workers that may die over one candidate, or a part of it, before it counts as failed."""


class CandidateTrial(NamedTuple):
    """A candidate's trial: the sampler's, in memory, and its id in the database."""

    sampled: optuna.Trial
    trial_id: int


@dataclass
class OpenJob:
    """A job at a worker, or waiting for another one because its worker died."""

    job: Job
    trial: CandidateTrial | None = None
    """None for a row to confirm, and for what the objective compares with."""
    materialize_seconds: float = 0.0
    items: int = 0
    """Items of the split that are scored."""
    twins: list[optuna.Trial] = field(default_factory=list)
    """Later proposals of the same merged model, which get its score."""
    error: str | None = None
    """The reason why one of its parts failed."""
    is_dropped: bool = False
    """True if some of its parts are not done in this run, so that it cannot end."""


class OpenJobs(dict[str, OpenJob]):
    """Open jobs by id; parts of a job have ids of their own.

    Some wait: nobody has begun this part, a worker died, or more of their blocks are due.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[str] = deque()
        self._parts: dict[str, frozenset[int]] = {}
        """Blocks of the jobs that are parts."""
        self._deaths: Counter[tuple[str, frozenset[int] | None]] = Counter()
        """Workers that died, by recipe and part: a node that is lost takes all parts at once."""

    @property
    def whole(self) -> list[OpenJob]:
        """The jobs, those in parts once."""
        return list({id(open_job): open_job for open_job in self.values()}.values())

    @property
    def searching(self) -> int:
        """Open jobs on the search split."""
        return sum(open_job.trial is not None for open_job in self.whole)

    @property
    def waiting(self) -> int:
        """Open jobs that wait for a worker."""
        return len(self._waiting)

    def search_of(self, recipe: Recipe) -> OpenJob | None:
        """Return the open job on the search split that is the same merged model as a recipe."""
        same = (o for o in self.values() if o.trial and o.job.recipe.sum_key == recipe.sum_key)
        return next(same, None)

    def is_scoring(self, recipe: Recipe, split: SplitName) -> bool:
        """Tell whether a recipe that is no candidate's has an open job on a split."""
        jobs = (open_job.job for open_job in self.values() if not open_job.trial)
        return any(job.recipe.key == recipe.key and job.split == split for job in jobs)

    def cut(self, job_id: str, parts: int) -> None:
        """Leave a job the first of some parts; the others wait for a worker each."""
        open_job = self[job_id]
        todo = open_job.job.todo
        ends = [len(todo) * number // parts for number in range(parts + 1)]
        for number, (start, end) in enumerate(pairwise(ends)):
            part_id = f"{job_id}.{number}" if number else job_id
            self[part_id] = open_job
            self._parts[part_id] = frozenset(todo[start:end])
            if number:
                self.wait(part_id)
        open_job.job = replace(open_job.job, todo=todo[: ends[1]])

    def close(self, job_id: str, error: str | None = None) -> OpenJob | None:
        """Close a job, or a part of it; return the job if it was the last part."""
        open_job = self.pop(job_id)
        self._parts.pop(job_id, None)
        open_job.error = open_job.error or error
        is_open = any(other is open_job for other in self.values())
        return None if is_open else open_job

    def wait(self, job_id: str) -> None:
        """Keep a job for the next worker that is free."""
        self._waiting.append(job_id)

    def orphan(self, job_id: str) -> int:
        """Keep a dead worker's job unless too many died over it; return how many did."""
        key = self._key(job_id)
        self._deaths[key] += 1
        if self._deaths[key] <= MAX_WORKER_DEATHS:
            self.wait(job_id)
        return self._deaths[key]

    def killed_a_worker(self, job_id: str) -> bool:
        """Tell whether a worker died over a job, or a part of one."""
        return self._deaths[self._key(job_id)] > 0

    def _key(self, job_id: str) -> tuple[str, frozenset[int] | None]:
        return self[job_id].job.recipe.key, self.part(job_id)

    def part(self, job_id: str) -> frozenset[int] | None:
        """Return the blocks of a job that is a part; None if it is whole."""
        return self._parts.get(job_id)

    def reopen(self, job_id: str) -> OpenJob | None:
        """Give the first job that waits, or part of one, another id; None if none waits."""
        if not self._waiting:
            return None
        old = self._waiting.popleft()
        self[job_id] = self.pop(old)
        part = self._parts.pop(old, None)
        if part is not None:
            self._parts[job_id] = part
        return self[job_id]

    def drop_waiting(self) -> list[Recipe]:
        """Close all jobs that wait; return their recipes.

        A job of which workers have parts is left to the next run, once these are done.
        """
        jobs = {job_id: self[job_id] for job_id in self._waiting}
        self._waiting.clear()
        closed = [self.close(job_id) for job_id in jobs]
        for open_job in jobs.values():
            open_job.is_dropped = True
        return [open_job.job.recipe for open_job in closed if open_job is not None]
