"""Between a study and its workers: small candidates go out several at a time, and nobody waits for what is written.

A worker that is free gets what was proposed while it worked; its results are written down when every worker has work
again. What a driver killed in between had not written is scored again.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal

from cabs_search.search.studies import Studies
from cabs_search.search.study import BlockResult, Job, Study

BATCH_SECONDS = 1.0
"""Work that a batch of several jobs holds, and that a worker does before it reports."""
SMALL_SECONDS = 0.3
"""A job that takes less is not sent alone."""
MOST_JOBS = 8
"""Jobs of a batch: the sampler proposes them without one another's scores."""
UNWRITTEN_SECONDS = 0.5
"""How long results wait, at the most, for workers that have not begun."""

Batch = Mapping[str, Job]
"""Jobs by id."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a worker says of one job: a block scored, or the error that ended it."""

    job_id: str
    result: BlockResult | None = None
    error: str | None = None


class Desk:
    """Gives batches out, takes parts in."""

    def __init__(self, study: Study | Studies, workers: int) -> None:
        """``study`` is taken up; ``workers`` are how many batches may be out."""
        self._study, self._workers = study, workers
        self._ids = map(str, itertools.count())
        self._ready: deque[Batch] = deque()
        self._out: dict[str, dict[str, int]] = {}
        """Blocks that are left of jobs by id, by batch."""
        self._begun: set[str] = set()
        self._results: list[tuple[str, BlockResult]] = []
        self._ends: list[Callable[[], object]] = []
        self._unwritten_since = 0.0
        self._block_seconds: deque[float] = deque(maxlen=64)

    def give(self, batch_id: str) -> Batch | Literal["finished"] | None:
        """A batch for a worker that is free; None while there is none."""
        if len(self._out) >= self._workers:
            return None
        if self._study.failure:
            self._drop_ready()
        if not self._ready:
            self.write()
            is_finished = self._propose() == "finished"
            if not self._ready:
                return "finished" if is_finished else None
        batch = self._ready.popleft()
        self._out[batch_id] = {job_id: len(job.todo) for job_id, job in batch.items()}
        return batch

    def begin(self, batch_id: str) -> None:
        """A worker has begun a batch."""
        self._begun.add(batch_id)

    def take(self, batch_id: str, parts: Iterable[Part]) -> None:
        """Take in what a worker did; ``rest`` writes it."""
        if not (self._results or self._ends):
            self._unwritten_since = time.monotonic()
        out = self._out[batch_id]
        for part in parts:
            if part.result is not None:
                self._results.append((part.job_id, part.result))
                self._block_seconds.append(part.result.materialize_seconds + part.result.evaluate_seconds)
                out[part.job_id] -= 1
            if part.error is not None or not out[part.job_id]:
                del out[part.job_id]
                self._ends.append(partial(self._study.finish, part.job_id, part.error))

    def died(self, batch_id: str) -> None:
        """A batch's worker died: another one gets what is left of it, each job alone."""
        self._end(batch_id, self._study.died)

    def leave(self, batch_id: str) -> None:
        """A batch is over: where it was interrupted, the next run takes up what is left of it."""
        self._end(batch_id, self._study.leave)

    def stop(self, batch_id: str, reason: str) -> None:
        """End the search for a reason that is no candidate's."""
        self._end(batch_id, partial(self._study.stop, reason=reason))

    def _end(self, batch_id: str, act: Callable[[str], object]) -> None:
        self._begun.discard(batch_id)
        self._ends += [partial(act, job_id) for job_id in self._out.pop(batch_id)]

    def rest(self) -> None:
        """Write and propose, unless a worker is about to get what is proposed already."""
        free = len(self._out) < self._workers
        if self._out.keys() - self._begun or (free and self._ready):
            late = time.monotonic() - self._unwritten_since > UNWRITTEN_SECONDS
            if late:
                self.write()
            return
        self.write()
        if not free and not self._ready and not self._study.failure:
            self._propose()

    def write(self) -> None:
        """Write down all that was taken in: the blocks in one transaction, then what ended."""
        results, ends = self._results, self._ends
        self._results, self._ends = [], []
        if results:
            self._study.record(results)
        for end in ends:
            end()

    def close(self) -> None:
        """Write down what is left; what was proposed and not given is the next run's."""
        self.write()
        self._drop_ready()

    def _drop_ready(self) -> None:
        for batch in self._ready:
            for job_id in batch:
                self._study.leave(job_id)
        self._ready.clear()

    def _propose(self) -> Literal["finished"] | None:
        """Make a batch ready, of one job or of small ones; where there is no job, nothing, and whether none will be."""
        share = min(MOST_JOBS, max(1, self._study.left // self._workers))  # near the end all workers get some
        block = median(self._block_seconds) if self._block_seconds else SMALL_SECONDS
        batch: dict[str, Job] = {}
        seconds = 0.0
        while len(batch) < share:
            job_id = next(self._ids)
            job = self._study.next_job(job_id)
            if not isinstance(job, Job):
                if not batch:
                    return job
                break
            if job.alone and batch:
                self._ready.append(batch)
                batch = {}
            batch[job_id] = job
            took = block * len(job.todo)
            seconds += took
            if job.alone or took >= SMALL_SECONDS or seconds + took > BATCH_SECONDS:
                break
        self._ready.append(batch)
        return None
