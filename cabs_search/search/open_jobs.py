"""Jobs that were given out and have not ended."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import optuna

from cabs_search.merging.recipe import Recipe
from cabs_search.search.jobs import Job
from cabs_search.tasks.items import SplitName

MAX_WORKER_DEATHS = 3
"""Workers that may die over one candidate before it counts as failed."""


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


class OpenJobs(dict[str, OpenJob]):
    """Open jobs by id, of which some wait: their workers died, or more of their blocks are due."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[str] = deque()
        self._deaths: Counter[str] = Counter()

    @property
    def searching(self) -> int:
        """Open jobs on the search split."""
        return sum(open_job.trial is not None for open_job in self.values())

    @property
    def waiting(self) -> int:
        """Open jobs that wait for a worker."""
        return len(self._waiting)

    def owed(self, candidate_items: int) -> int:
        """Return the items that open candidates may still take, of so many each."""
        return sum(candidate_items - open_job.items for open_job in self.values() if open_job.trial)

    def search_of(self, recipe: Recipe) -> OpenJob | None:
        """Return the open job on the search split that is the same merged model as a recipe."""
        same = (o for o in self.values() if o.trial and o.job.recipe.sum_key == recipe.sum_key)
        return next(same, None)

    def is_scoring(self, recipe: Recipe, split: SplitName) -> bool:
        """Tell whether a recipe that is no candidate's has an open job on a split."""
        jobs = (open_job.job for open_job in self.values() if not open_job.trial)
        return any(job.recipe.key == recipe.key and job.split == split for job in jobs)

    def wait(self, job_id: str) -> None:
        """Keep a job for the next worker that is free."""
        self._waiting.append(job_id)

    def orphan(self, job_id: str) -> int:
        """Keep a dead worker's job unless too many died over it; return how many did."""
        key = self[job_id].job.recipe.key
        self._deaths[key] += 1
        if self._deaths[key] <= MAX_WORKER_DEATHS:
            self.wait(job_id)
        return self._deaths[key]

    def killed_a_worker(self, recipe: Recipe) -> bool:
        """Tell whether a worker died over a recipe."""
        return self._deaths[recipe.key] > 0

    def pop_waiting(self) -> OpenJob | None:
        """Close the first job that waits, to be opened again; None if there is none."""
        return self.pop(self._waiting.popleft()) if self._waiting else None

    def drop_waiting(self) -> list[Recipe]:
        """Close all jobs that wait; return their recipes."""
        recipes = [self.pop(job_id).job.recipe for job_id in self._waiting]
        self._waiting.clear()
        return recipes
