"""Ray worker: a resident model that becomes one candidate after another and scores blocks."""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from cabs_search.checkpoints.checkpoint import ChangedFileError
from cabs_search.cluster.dispatcher import STEP_SECONDS, Batch, Report
from cabs_search.cluster.travel import Carrier, Source
from cabs_search.kinds.base import Outcome
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.calibration import CalibrationKey
from cabs_search.merging.family import Family
from cabs_search.scoring.ensemble import score_ensemble
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Ints, Items, SplitName

IDLE_SECONDS = 0.05
"""Duration of a step without a job."""
MACHINES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE}
"""Errors of a machine that no candidate is to blame for: a full disk, too many open files."""
CHANGED = "changed during the search; if it is put back, the same command goes on"
ANOTHER = "holds other weights than on the driver's node"
PATIENCE_SECONDS = 2.0
"""Longest wait of a step for its first block."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """Data that every worker of a search gets once."""

    spec: Spec
    items: Mapping[SplitName, Mapping[str, Items]]
    blocks: Mapping[SplitName, list[dict[str, Ints]]]
    cache: Path
    """Vector cache on the driver's node; on others unless their environment has one."""
    threads: int
    """Torch threads of a worker."""
    calibrations: Mapping[CalibrationKey, Path]
    """Files of what experts' layers saw, for mask rules that need it."""
    source: Source | None = None
    """The node that has models and vectors; None: every node has them."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of base and experts when the search began, on the driver's node, by name."""


class Worker(tune.Trainable):  # type: ignore[misc]
    """One Tune trial that lasts as long as the search.

    ``add_jobs`` brings jobs, a thread scores them, and each ``step`` reports what was scored.
    """

    _broken: str | None = None
    """Error that kept the models from loading."""

    def setup(self, config: dict[str, Any], context: Context) -> None:  # noqa: ARG002 (Tune's signature)
        """Load model and heads; the items come with the context."""
        torch.set_num_threads(context.threads)
        self._context = context
        self._jobs: SimpleQueue[tuple[str, Job]] = SimpleQueue()
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._left: dict[str, int] = {}
        self._is_introduced = False
        try:
            spec, files = context.spec, context.calibrations
            carrier = Carrier(context.source, context.cache)
            base, experts = carrier.model(spec.base), carrier.models(spec.experts)
            family = Family.open(base, experts, spec.vocabulary, spec.pickled)
            is_here = context.source is None
            _check_weights(family, context.weights, CHANGED if is_here else ANOTHER)
            self._bench = Workbench(
                family,
                spec.tasks,
                VectorCache(carrier.cache, carrier.entry),
                device=spec.device,
                dtype=spec.dtype,
                generator=spec.generator,
                calibrations={key: carrier.statistics(p) for key, p in files.items()},
            )
        except Exception as error:
            # the first step reports it: if raised here, Tune would try again and then hide it
            self._broken = f"{type(error).__name__}: {error}"
        else:
            Thread(target=self._work, daemon=True).start()

    def add_jobs(self, batch: Batch) -> None:
        """Queue jobs; Ray calls this between two steps."""
        for job_id, job in batch.items():
            self._left[job_id] = len(job.todo)
            self._jobs.put((job_id, job))

    def step(self) -> dict[str, Any]:
        """Return the actor's handle at first, then what was scored in ``STEP_SECONDS``."""
        if self._broken:
            return {"broken": self._broken, "done": True}
        if not self._is_introduced:
            self._is_introduced = True
            return {"worker": RayPayload(ray.get_runtime_context().current_actor), "done": False}
        if not self._left:
            time.sleep(IDLE_SECONDS)
        reports: list[Report] = []
        start = time.perf_counter()
        while self._left:
            end = start + (STEP_SECONDS if reports else PATIENCE_SECONDS)
            try:
                report = self._reports.get(timeout=max(0.0, end - time.perf_counter()))
            except Empty:
                break
            reports.append(report)
            self._left[report.job_id] -= 1
            if report.error is not None or not self._left[report.job_id]:
                del self._left[report.job_id]
        return {"reports": RayPayload(reports), "done": False}

    def _work(self) -> None:
        """Score one job after another. An error ends its own job alone."""
        torch.set_num_threads(self._context.threads)  # holds for this thread only
        while True:
            start = time.perf_counter()
            job_id, job = self._jobs.get()
            waited = time.perf_counter() - start
            for block in job.todo:
                report = self._report(job_id, job, block, waited)
                self._reports.put(report)
                waited = 0.0
                if report.error is not None:
                    break

    def _report(self, job_id: str, job: Job, block: int, waited: float = 0.0) -> Report:
        """Score a block; return its result or its error, with our warnings."""
        result, error, is_machines = None, None, False
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", module="cabs_search")
            try:
                result = self._score(job, block)
            except BaseException as raised:
                # whatever it is: if this thread ended, the driver would wait for ever
                error = f"{type(raised).__name__}: {raised}"
                is_machines = isinstance(raised, OSError) and raised.errno in MACHINES
                if isinstance(raised, ChangedFileError):
                    error, is_machines = f"{raised.path}: {CHANGED}", True
        messages = tuple(str(w.message) for w in caught if "cabs_search" in w.filename)
        return Report(
            job_id=job_id,
            result=result,
            error=error,
            warnings=messages,
            is_machines=is_machines,
            waited_seconds=waited,
        )

    def _score(self, job: Job, block: int) -> BlockResult:
        start = time.perf_counter()
        # an ensemble becomes its members anew for each block
        if block == job.todo[0] and not job.recipe.ensemble:
            self._bench.materialize(job.recipe)
        ready = time.perf_counter()
        context = self._context
        items, rows = context.items[job.split], context.blocks[job.split][block]
        outcomes: dict[str, Outcome] = {}
        gradients = by_temperature = None
        if job.recipe.ensemble:
            outcomes = score_ensemble(self._bench, job.recipe, items, rows)
        elif job.purpose == "gradient":
            outcomes, gradients = self._bench.score_with_gradients(items, rows, job.temperatures)
            if not all(np.isfinite(found).all() for found in gradients.values()):
                raise ValueError("a gradient of λ is not finite")
        elif job.purpose == "temperature":
            by_temperature = self._bench.losses_by_temperature(items, rows)
        else:
            outcomes = self._bench.score(items, rows, job.temperatures, job.sampling)
        for task, outcome in outcomes.items():
            if not np.isfinite(outcome.losses).all():
                raise ValueError(f"the loss on {task} is not finite")
        return BlockResult(
            block=block,
            outcomes=outcomes,
            materialize_seconds=ready - start,
            evaluate_seconds=time.perf_counter() - ready,
            gradients=gradients,
            by_temperature=by_temperature,
        )


def _check_weights(family: Family, weights: Mapping[str, str], otherwise: str) -> None:
    """Check that models are those of the driver.

    A worker may start late, in place of one that died.

    Args:
        family: the models as this worker opened them.
        weights: their fingerprints by name, which the vectors' keys need anyway; none: unchecked.
        otherwise: what is said of a model with another one.

    Raises:
        ValueError: one has another fingerprint.

    """
    hashed = family.fingerprints if weights else {}  # all at the same time
    for name, fingerprint in weights.items():
        if (hashed.get(name) or family.base.fingerprint) != fingerprint:
            raise ValueError(f"{family.checkpoint(name).folder}: {otherwise}")


@dataclass(frozen=True, eq=False)
class RayPayload:
    """A value that Tune neither flattens nor prints."""

    value: Any

    def __repr__(self) -> str:
        return "..."
