"""Worker without Ray: what it reports of a block."""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cabs_search.checkpoints.checkpoint import ChangedFileError
from cabs_search.cluster.worker import Worker
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.search.jobs import Job

RECIPE = make_recipe(make_method("task-arithmetic", ("a",)), {"a": 1.0})
JOB = Job(recipe=RECIPE, split="search", todo=(0,))


@pytest.mark.parametrize("error", [None, MemoryError("no room"), KeyboardInterrupt()])
def test_our_warnings_come_with_the_block(error: BaseException | None) -> None:
    def score(*_: Any) -> str:
        for module in ("cabs_search.merging.cache", "torch.nn"):
            path = f"/x/{module.replace('.', '/')}.py"
            warnings.warn_explicit(f"{module} is damaged", ImportWarning, path, 1, module)
        if error:
            raise error
        return "result"

    shown = warnings.showwarning
    worker = Worker.__new__(Worker)
    worker._score = score
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        reports = []
        # twice, as workers do: the second one warns again
        thread = threading.Thread(
            target=lambda: reports.extend(worker._report("7", JOB, 0) for _ in range(2))
        )
        thread.start()
        thread.join()
    for report in reports:
        assert report.warnings == ("cabs_search.merging.cache is damaged",)
        assert report.job_id == "7"
        assert report.result == (None if error else "result")
        assert report.error == (error and f"{type(error).__name__}: {error}")
    assert len(reports) == 2
    assert warnings.showwarning is shown


def test_a_file_that_changes_is_no_candidates_fault() -> None:
    def score(*_: Any) -> str:
        raise ChangedFileError(Path("/m/model.safetensors"))

    worker = Worker.__new__(Worker)
    worker._score = score
    report = worker._report("7", JOB, 0)
    assert report.is_machines
    assert report.error is not None
    assert report.error.startswith("/m/model.safetensors: changed during the search; ")


def test_a_report_says_how_long_its_worker_had_nothing_to_do() -> None:
    worker = Worker.__new__(Worker)
    worker._context = SimpleNamespace(threads=torch.get_num_threads())
    worker._jobs, worker._reports = SimpleQueue(), SimpleQueue()
    worker._score = lambda *_: "result"
    threading.Thread(target=worker._work, daemon=True).start()
    worker._jobs.put(("1", JOB))
    worker._reports.get()
    time.sleep(0.2)
    worker._jobs.put(("2", replace(JOB, todo=(0, 1))))
    first, second = worker._reports.get(), worker._reports.get()
    assert first.waited_seconds > 0.1
    assert second.waited_seconds == 0
