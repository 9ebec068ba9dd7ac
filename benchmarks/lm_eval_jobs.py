"""lm-evaluation-harness in its own environment: jobs as JSON lines on stdin, answers on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate  # type: ignore[import-not-found]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

from cabs_search.spec.load import load
from cabs_search.tasks.load import load_items

MOST = 8
"""Requests of its largest batch: it tries that size five times before it begins, which with its own
64 takes longer than the requests.
"""


def items(job: dict[str, Any]) -> None:
    """Write the search items of a study's tasks, as the harness's code renders them for us."""
    spec = load(job["spec"])
    found = {task: load_items(spec, task)["search"] for task in spec.tasks}
    Path(job["out"]).write_bytes(pickle.dumps(found))


class TimedHarness(HFLM):  # type: ignore[misc]
    """The harness's model, with the seconds that parts of an evaluation take."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.seconds = {"loop": 0.0, "detect": 0.0}
        super().__init__(*arguments, **settings)

    def loglikelihood(self, *arguments: Any, **settings: Any) -> Any:
        """Tokenize and score all requests."""
        return self._timed("loop", super().loglikelihood, *arguments, **settings)

    def _detect_batch_size(self, *arguments: Any, **settings: Any) -> Any:
        return self._timed("detect", super()._detect_batch_size, *arguments, **settings)

    def _timed(self, what: str, act: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        found = act(*arguments, **settings)
        self.seconds[what] += time.perf_counter() - start
        return found


def evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """Score a checkpoint on tasks; seconds of its parts, and the metrics by task."""
    start = time.perf_counter()
    model = TimedHarness(
        pretrained=job["model"],
        tokenizer=job["tokenizer"],
        device="cpu",
        dtype="float32",
        batch_size="auto",
        max_batch_size=MOST,
    )
    loaded = time.perf_counter()
    manager = TaskManager(include_path=job["include"], include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=job["tasks"], task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    done = time.perf_counter()
    seconds = model.seconds | {"evaluate": done - loaded, "whole": done - start}
    return {"seconds": seconds, "metrics": found["results"]}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    acts = {"items": items, "evaluate": evaluate}
    for line in sys.stdin:
        job = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = acts[job["act"]](job)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
