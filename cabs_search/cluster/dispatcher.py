"""Between a study and its workers: jobs go out before a worker has run dry, small ones several at a
time.

What workers found is written down while they work. What a driver that was killed had not written is
scored again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.studies import Studies
from cabs_search.search.study import WORKER_DEATHS, Study

STEP_SECONDS = 0.5
"""How often a worker reports, and what a batch of small jobs holds."""
AHEAD_SECONDS = 1.0
"""A worker that has no more left, by its last report, gets new jobs."""
SMALL_SECONDS = 0.3
"""A job that takes less goes out with others."""
MOST_JOBS = 8
"""Jobs of a batch: the sampler proposes them without one another's scores."""
AHEAD_SHARE = 1 / 8
"""Of the budget, at the most so much is out at workers at a time, two jobs for each at the least.
"""
Batch = Mapping[str, Job]
"""Jobs by id."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a worker says of one job: a block scored, or the error that ended it."""

    job_id: str
    result: BlockResult | None = None
    error: str | None = None


@dataclass
class _Worker:
    send: Callable[[Batch], object]
    left: dict[str, int] = field(default_factory=dict)
    """Blocks that are not scored yet, by job."""
    is_alone: bool = False
    """Whether it has a job that may have no company."""


class Dispatcher:
    """Gives jobs out, takes parts in, writes them down."""

    def __init__(self, study: Study | Studies, workers: int) -> None:
        """``study`` is taken up; ``workers`` are how many there will be."""
        self._study, self._count = study, workers
        self._ids = map(str, itertools.count())
        self._workers: dict[str, _Worker] = {}
        self._held: deque[tuple[str, Job]] = deque()
        """Jobs that may have no company, for workers that have nothing."""
        self._results: list[tuple[str, BlockResult]] = []
        self._ends: list[Callable[[], object]] = []
        self._block_seconds: deque[float] = deque(maxlen=64)
        self._stillborn = 0
        self.finished = False

    def join(self, worker: str, send: Callable[[Batch], object]) -> None:
        """A worker is there, and is reached by ``send``."""
        self._workers[worker] = _Worker(send)
        self._stillborn = 0

    def take(self, worker: str, parts: Iterable[Part]) -> None:
        """Take in what a worker did; ``rest`` writes it."""
        left = self._workers[worker].left
        for part in parts:
            if part.result is not None:
                self._results.append((part.job_id, part.result))
                self._block_seconds.append(
                    part.result.materialize_seconds + part.result.evaluate_seconds
                )
                left[part.job_id] -= 1
            if part.error is not None or not left[part.job_id]:
                del left[part.job_id]
                self._ends.append(partial(self._study.finish, part.job_id, part.error))

    def died(self, worker: str) -> None:
        """A worker died: another one gets what it had left, each job alone."""
        if worker in self._workers:
            self._ends += [
                partial(self._study.died, job_id) for job_id in self._workers.pop(worker).left
            ]
            return
        self._stillborn += 1
        if self._stillborn > WORKER_DEATHS:
            self.stop(f"a worker could not start: {self._stillborn} in a row died of it")

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's."""
        self._study.stop(reason)

    def rest(self) -> None:
        """Write down what was taken in, and see to it that every worker has work."""
        self.write()
        self.finished = self.finished or self._study.failure is not None
        for worker in sorted(self._workers.values(), key=lambda w: sum(w.left.values())):
            if not self.finished and self._wants(worker) and (batch := self._batch(worker)):
                worker.left |= {job_id: len(job.todo) for job_id, job in batch.items()}
                worker.is_alone = any(job.alone for job in batch.values())
                worker.send(batch)

    def write(self) -> None:
        """Write down what was taken in: the blocks in one transaction, then what ended."""
        results, ends = self._results, self._ends
        self._results, self._ends = [], []
        if results:
            self._study.record(results)
        for end in ends:
            end()

    def _wants(self, worker: _Worker) -> bool:
        if not worker.left:
            return True
        if (
            worker.is_alone or self._study.left <= self._count
        ):  # the last jobs are for those who have none
            return False
        if len(worker.left) >= self._most_at_one:
            return False
        blocks = sum(worker.left.values())
        return blocks == 1 or blocks * self._seconds <= AHEAD_SECONDS

    @property
    def _most_at_one(self) -> int:
        return max(2, int(self._study.budget * AHEAD_SHARE) // self._count)

    @property
    def _seconds(self) -> float:
        """What a block takes."""
        return median(self._block_seconds) if self._block_seconds else STEP_SECONDS

    def _batch(self, worker: _Worker) -> dict[str, Job]:
        """One job, or small ones; none where there is nothing to do now."""
        if self._held:
            return {} if worker.left else dict([self._held.popleft()])
        some = max(1, self._study.left // self._count)  # near the end each worker gets some
        most = min(MOST_JOBS, some, self._most_at_one - len(worker.left))
        batch: dict[str, Job] = {}
        seconds = 0.0
        while len(batch) < most:
            job_id = next(self._ids)
            job = self._study.next_job(job_id)
            if not isinstance(job, Job):
                self.finished = job == "finished"
                break
            if job.alone and (batch or worker.left):
                self._held.append((job_id, job))
                break
            batch[job_id] = job
            took = self._seconds * len(job.todo)
            seconds += took
            if job.alone or took >= SMALL_SECONDS or seconds + took > STEP_SECONDS:
                break
        return batch
