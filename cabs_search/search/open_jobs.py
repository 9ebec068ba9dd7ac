"""Jobs that were given out and have not ended."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import optuna

from cabs_search.merging.recipe import Recipe
from cabs_search.search.jobs import Job

MAX_WORKER_DEATHS = 3
"""Workers that may die over one candidate before it counts as failed."""


@dataclass(frozen=True, kw_only=True)
class CandidateTrial:
    """A candidate as Optuna knows it."""

    sampled: optuna.Trial
    """The sampler's, in memory."""
    trial_id: int
    """In the database."""


@dataclass
class OpenJob:
    """A job at a worker, or waiting for another one because its worker died."""

    job: Job
    trial: CandidateTrial | None = None
    """None for a row to confirm."""
    materialize_seconds: float = 0.0


class OpenJobs:
    """Open jobs by id; those whose workers died are orphans."""

    def __init__(self) -> None:
        self._jobs: dict[str, OpenJob] = {}
        self._orphans: deque[str] = deque()
        self._deaths: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, job_id: str) -> OpenJob:
        return self._jobs[job_id]

    @property
    def searching(self) -> int:
        """Open jobs on the search split."""
        return sum(open_job.trial is not None for open_job in self._jobs.values())

    @property
    def orphans(self) -> int:
        """Open jobs that wait for another worker."""
        return len(self._orphans)

    def is_searching(self, recipe: Recipe) -> bool:
        """Tell whether a recipe has an open job on the search split."""
        return any(o.job.recipe.key == recipe.key for o in self._jobs.values() if o.trial)

    def is_confirming(self, recipe: Recipe) -> bool:
        """Tell whether a recipe has an open job on the confirm split."""
        return any(o.job.recipe.key == recipe.key for o in self._jobs.values() if not o.trial)

    def add(self, job_id: str, open_job: OpenJob) -> None:
        """Open a job."""
        self._jobs[job_id] = open_job

    def pop(self, job_id: str) -> OpenJob:
        """Close a job."""
        return self._jobs.pop(job_id)

    def count_death(self, job_id: str) -> int:
        """Count a worker's death over a job's recipe; return how many there were."""
        key = self._jobs[job_id].job.recipe.key
        self._deaths[key] += 1
        return self._deaths[key]

    def orphan(self, job_id: str) -> None:
        """Keep a job for another worker."""
        self._orphans.append(job_id)

    def pop_orphan(self) -> OpenJob | None:
        """Close the first orphan, to be opened again; None if there is none."""
        return self._jobs.pop(self._orphans.popleft()) if self._orphans else None

    def drop_orphans(self) -> list[Recipe]:
        """Close all orphans; return their recipes."""
        recipes = [self._jobs.pop(job_id).job.recipe for job_id in self._orphans]
        self._orphans.clear()
        return recipes
