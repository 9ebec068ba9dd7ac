"""Dispatcher of jobs: sends them before a worker runs dry, small ones several at a time.

Results are recorded while workers work on. Results that a killed driver had not recorded yet are
scored again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from cabs_search.search.jobs import BlockResult, Job, JobSource
from cabs_search.search.open_jobs import MAX_WORKER_DEATHS

STEP_SECONDS = 0.5
"""Time between two reports of a worker, and the most work in a batch of small jobs."""
AHEAD_SECONDS = 1.0
"""Remaining work, by a worker's last report, below which it gets new jobs."""
SMALL_SECONDS = 0.3
"""Duration below which a job is sent together with others."""
MAX_BATCH_JOBS = 8
"""Jobs in a batch: the sampler proposes them without knowing one another's scores."""
AHEAD_SHARE = 1 / 8
"""Share of the budget that may be out at workers at a time, but at least two jobs per worker."""
Batch = Mapping[str, Job]
"""Jobs by id."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """News of one job: a block scored, or the error that ended the job."""

    job_id: str
    result: BlockResult | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    """Messages for the user, such as a damaged entry of the cache."""
    is_machines: bool = False
    """True if the error is the worker's machine's, and no candidate's."""
    waited_seconds: float = 0.0
    """Time that the worker had nothing to do before this block."""


@dataclass
class _Worker:
    send: Callable[[Batch], object]
    left: dict[str, int] = field(default_factory=dict)
    """Blocks that are not scored yet, by job."""
    is_reserved: bool = False
    """True if it has a job that must be its only one."""


class Dispatcher:
    """Sends jobs to workers, receives their reports and records them."""

    def __init__(self, study: JobSource, workers: int) -> None:
        """Prepare for as many ``workers`` as there will be at a time."""
        self._study, self._count = study, workers
        study.workers = workers
        self._ids = map(str, itertools.count())
        self._workers: dict[str, _Worker] = {}
        self._alone: deque[tuple[str, Job]] = deque()
        """Opened jobs that wait for a worker without any other."""
        self._results: list[tuple[str, BlockResult]] = []
        self._closings: list[Callable[[], object]] = []
        """Calls that close jobs, once their results are recorded."""
        self._block_seconds: deque[float] = deque(maxlen=64)
        self._failed_starts = 0
        self.is_finished = False

    def add_worker(self, worker: str, send: Callable[[Batch], object]) -> None:
        """Welcome a worker that has started; ``send`` brings it jobs."""
        self._workers[worker] = _Worker(send)
        self._failed_starts = 0

    def receive(self, worker: str, reports: Iterable[Report]) -> None:
        """Keep a worker's reports until the next flush."""
        left = self._workers[worker].left
        for report in reports:
            if (result := report.result) is not None:
                self._results.append((report.job_id, result))
                self._block_seconds.append(result.materialize_seconds + result.evaluate_seconds)
                left[report.job_id] -= 1
            if report.is_machines:
                self.stop(f"a worker cannot go on: {report.error}")
                del left[report.job_id]
            elif report.error is not None or not left[report.job_id]:
                del left[report.job_id]
                self._closings.append(partial(self._study.finish, report.job_id, report.error))

    def worker_died(self, worker: str) -> None:
        """Leave a dead worker's jobs to others; give up if several in a row could not start."""
        if worker in self._workers:
            lost = self._workers.pop(worker).left
            self._closings += [partial(self._study.job_lost, job_id) for job_id in lost]
            return
        self._failed_starts += 1
        if self._failed_starts > MAX_WORKER_DEATHS:
            self.stop(f"a worker could not start: {self._failed_starts} in a row died of it")

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's fault."""
        self._study.stop(reason)

    def flush_and_dispatch(self) -> None:
        """Record received results, then send jobs to workers that need some."""
        self.flush()
        self.is_finished = self.is_finished or self._study.failure is not None
        for worker in sorted(self._workers.values(), key=lambda w: sum(w.left.values())):
            if not self.is_finished and self._needs_jobs(worker) and (batch := self._batch(worker)):
                worker.left |= {job_id: len(job.todo) for job_id, job in batch.items()}
                worker.is_reserved = any(job.alone for job in batch.values())
                worker.send(batch)

    def flush(self) -> None:
        """Record received results in one transaction, then close the jobs that ended."""
        results, closings = self._results, self._closings
        self._results, self._closings = [], []
        if results:
            self._study.record(results)
        for close in closings:
            close()

    def _needs_jobs(self, worker: _Worker) -> bool:
        if not worker.left:
            return True
        # the last jobs are kept for workers that have none
        if worker.is_reserved or self._study.left <= self._count:
            return False
        if len(worker.left) >= self._max_jobs_each:
            return False
        blocks = sum(worker.left.values())
        return blocks == 1 or blocks * self._seconds_of_block <= AHEAD_SECONDS

    @property
    def _max_jobs_each(self) -> int:
        return max(2, int(self._study.budget * AHEAD_SHARE) // self._count)

    @property
    def _seconds_of_block(self) -> float:
        return median(self._block_seconds) if self._block_seconds else STEP_SECONDS

    def _batch(self, worker: _Worker) -> dict[str, Job]:
        """Open one job, or several small ones; none if there is nothing to do now."""
        if self._alone:
            return {} if worker.left else dict([self._alone.popleft()])
        # near the end each worker gets some
        fair_share = max(1, self._study.left // self._count)
        size = min(MAX_BATCH_JOBS, fair_share, self._max_jobs_each - len(worker.left))
        batch: dict[str, Job] = {}
        total_seconds = 0.0
        while len(batch) < size:
            job_id = next(self._ids)
            job = self._study.next_job(job_id)
            if job is None:
                self.is_finished = self._study.is_finished
                break
            if job.alone and (batch or worker.left):
                self._alone.append((job_id, job))
                break
            batch[job_id] = job
            seconds = self._seconds_of_block * len(job.todo)
            total_seconds += seconds
            is_full = total_seconds + seconds > STEP_SECONDS
            if job.alone or seconds >= SMALL_SECONDS or is_full:
                break
        return batch
