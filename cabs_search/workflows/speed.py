"""Speed of a worker, measured on a batch of each task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from cabs_search.scoring.batches import batches_of
from cabs_search.scoring.workbench import Workbench
from cabs_search.tasks.items import Items


class Speed(NamedTuple):
    """Speed of one worker on the search items of all tasks."""

    items_per_second: float
    generating: float
    """Share of the time in which texts are generated, 0 to 1; they are those of the base."""


def measured_speed(bench: Workbench, items: Mapping[str, Items], workers: int) -> Speed:
    """Measure one worker's speed on a batch of each task, after one to warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        seconds = {task: _seconds(bench, task, its) for task, its in items.items()}
    finally:
        torch.set_num_threads(threads)
    total = sum(seconds.values())
    generating = sum(s for task, s in seconds.items() if items[task].task.kind.generates)
    return Speed(sum(map(len, items.values())) / total, generating / total)


def _seconds(bench: Workbench, task: str, items: Items) -> float:
    """Estimate the time of all items of a task."""
    chosen = list(batches_of(items, np.arange(len(items)), bench.device))
    rows = chosen[len(chosen) // 2]
    bench.score({task: items}, {task: rows})
    start = time.perf_counter()
    bench.score({task: items}, {task: rows})
    return (time.perf_counter() - start) / len(rows) * len(items)


def new_tokens(items: Mapping[str, Items]) -> int:
    """Return the tokens that one candidate generates, at most."""
    most = {task: its.task.max_new_tokens or 0 for task, its in items.items()}
    return sum(most[task] * len(its) for task, its in items.items())
