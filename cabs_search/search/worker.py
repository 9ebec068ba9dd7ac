"""A Ray worker: a resident model that becomes one candidate after another and scores blocks of items."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from cabs_search.evaluate import Workbench
from cabs_search.search.study import BlockResult, Job
from cabs_search.spec import Spec
from cabs_search.store import Store
from cabs_search.tasks import Ints, Items, SplitName


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
    """One step materializes a candidate where needed and scores one block. Reused from candidate to candidate."""

    _broken: str | None = None

    def setup(self, config: dict[str, Any], context: Context) -> None:
        """Load model and heads; the items come with the context."""
        torch.set_num_threads(context.threads)
        self._context = context
        self._take(config)
        try:
            self._bench = Workbench(context.spec, Store(context.cache), context.calibrations)
        except Exception as error:  # told at the first step: Tune would try again and then keep it to itself
            self._broken = f"{type(error).__name__}: {error}"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Turn to another job, keeping the model."""
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self._job: Job = config["job"].value
        self._step, self._ready = 0, False

    def step(self) -> dict[str, Any]:
        """Score the next block. A candidate's own error ends its job; it does not end the worker."""
        if self._broken:
            return {"broken": self._broken, "done": True}
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.filterwarnings("always", module="cabs_search")
                result = self._score(self._job.todo[self._step])
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}", "done": True}
        self._step += 1
        result = replace(result, warnings=tuple(str(w.message) for w in said if "cabs_search" in w.filename))
        return {"result": Opaque(result), "done": self._step == len(self._job.todo)}

    def _score(self, block: int) -> BlockResult:
        start = time.perf_counter()
        if not self._ready:
            self._bench.materialize(self._job.recipe)
            self._ready = True
        ready = time.perf_counter()
        split = self._job.split
        outcomes = self._bench.score(self._context.items[split], self._context.blocks[split][block])
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
class Opaque:
    """A value that Tune neither flattens nor prints."""

    value: Any

    def __repr__(self) -> str:
        return "..."
