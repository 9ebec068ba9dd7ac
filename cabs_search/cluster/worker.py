"""A Ray worker: a resident model that becomes one candidate after another and scores blocks of
items.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from cabs_search.cluster.dispatcher import STEP_SECONDS, Batch, Part
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Ints, Items, SplitName

IDLE_SECONDS = 0.05
"""What a worker without a job waits before it asks again."""
PATIENCE_SECONDS = 2.0
"""How long a step waits for a block."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What every worker of a study is given once."""

    spec: Spec
    items: Mapping[SplitName, Mapping[str, Items]]
    blocks: Mapping[SplitName, list[dict[str, Ints]]]
    cache: Path
    threads: int
    """Torch threads a worker."""
    calibrations: Mapping[str, Path]
    """Files of what experts' layers saw, for mask rules that need it."""


class Worker(tune.Trainable):  # type: ignore[misc]
    """Lives as long as the search: ``feed`` brings jobs, a thread scores them, a step says what it
    has found.
    """

    _broken: str | None = None

    def setup(self, config: dict[str, Any], context: Context) -> None:  # noqa: ARG002 (Tune's signature)
        """Load model and heads; the items come with the context."""
        torch.set_num_threads(context.threads)
        self._context = context
        self._todo: SimpleQueue[tuple[str, Job]] = SimpleQueue()
        self._found: SimpleQueue[Part] = SimpleQueue()
        self._left: dict[str, int] = {}
        self._is_known = False
        self._said: list[str] = []
        warnings.filterwarnings("always", module="cabs_search")
        warnings.showwarning = self._hear
        try:
            self._bench = Workbench(
                Family.open(context.spec.base, context.spec.experts),
                context.spec.tasks,
                VectorCache(context.cache),
                device=context.spec.device,
                dtype=context.spec.dtype,
                calibrations=context.calibrations,
            )
        except (
            Exception
        ) as error:  # told at the first step: Tune would try again and then keep it to itself
            self._broken = f"{type(error).__name__}: {error}"
        else:
            Thread(target=self._work, daemon=True).start()

    def _hear(self, message: Any, category: Any, filename: str, *_: Any, **__: Any) -> None:  # noqa: ARG002
        if "cabs_search" in filename:
            self._said.append(str(message))

    def feed(self, batch: Batch) -> None:
        """Take jobs on; called between two steps."""
        for job_id, job in batch.items():
            self._left[job_id] = len(job.todo)
            self._todo.put((job_id, job))

    def step(self) -> dict[str, Any]:
        """Say where jobs may be sent, at first; then what was found in ``STEP_SECONDS``, if
        anything.
        """
        if self._broken:
            return {"broken": self._broken, "done": True}
        if not self._is_known:
            self._is_known = True
            return {"worker": RayPayload(ray.get_runtime_context().current_actor), "done": False}
        if not self._left:
            time.sleep(IDLE_SECONDS)
        parts: list[Part] = []
        start = time.perf_counter()
        while self._left:
            end = start + (STEP_SECONDS if parts else PATIENCE_SECONDS)
            try:
                part = self._found.get(timeout=max(0.0, end - time.perf_counter()))
            except Empty:
                break
            parts.append(part)
            self._left[part.job_id] -= 1
            if part.error is not None or not self._left[part.job_id]:
                del self._left[part.job_id]
        return {"parts": RayPayload(parts), "done": False}

    def _work(self) -> None:
        """Score one job after another. A job's own error ends that job alone."""
        torch.set_num_threads(self._context.threads)  # of this thread
        while True:
            job_id, job = self._todo.get()
            try:
                for number, block in enumerate(job.todo):
                    result = self._score(job, block, is_first=number == 0)
                    told, self._said = tuple(self._said), []
                    self._found.put(Part(job_id=job_id, result=replace(result, warnings=told)))
            except (
                BaseException
            ) as error:  # the thread goes on whatever comes: nobody else would tell
                self._found.put(Part(job_id=job_id, error=f"{type(error).__name__}: {error}"))

    def _score(self, job: Job, block: int, *, is_first: bool) -> BlockResult:
        start = time.perf_counter()
        if is_first:
            self._bench.materialize(job.recipe)
        ready = time.perf_counter()
        outcomes = self._bench.score(
            self._context.items[job.split], self._context.blocks[job.split][block]
        )
        for task, outcome in outcomes.items():
            if not np.isfinite(outcome.losses).all():
                raise ValueError(f"the loss on {task} is not finite")
        return BlockResult(
            block=block,
            outcomes=outcomes,
            materialize_seconds=ready - start,
            evaluate_seconds=time.perf_counter() - ready,
        )


@dataclass(frozen=True, eq=False)
class RayPayload:
    """A value that Tune neither flattens nor prints."""

    value: Any

    def __repr__(self) -> str:
        return "..."
