"""Whole searches: candidates an hour against the authors' workflow, scaling, memory."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import cabs_search
from benchmarks import families, program
from benchmarks.figures import CORES, Ledger, Target, in_fresh_process, threads
from benchmarks.rivals import Authors, padded, predict
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.space import Lambda
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_items

TASKS = ("topic", "headline", "tweets")
ITEMS = 200
"""Items of each task."""
CANDIDATES = {1: 16, 2: 32}
"""Budgets by number of workers."""
WARM = 0.25
"""Share of the candidates that come before the steady state."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Cost of one search."""

    workers: int
    candidates: int
    seconds: float
    """Total of start, vectors, search, confirmation and tracking."""
    steady: float
    """Candidates an hour in the steady state."""
    materialize_seconds: float
    """Median over candidates."""
    pss: int
    """Proportional set size of all workers together, the peak, in bytes."""


def measure(ledger: Ledger) -> None:
    """Run a search with one worker, one with two, and the authors' workflow on the same items."""
    spec = study()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            workers: in_fresh_process(searched, spec, workers, count, Path(folder))
            for workers, count in CANDIDATES.items()
        }
    whole, merge = in_fresh_process(by_authors, spec)
    two = runs[2]
    what = f"{len(TASKS)} tasks of {ITEMS} items, {CORES} cores"
    rival = {"rival": "the authors' workflow", "rival_value": 3600 / whole}
    own: dict[str, Any] = {
        "part": "search",
        "unit": "candidates/h",
        "target": Target(of="ratio", least=3),
    }
    note = (
        f"{two.candidates} candidates in {two.seconds:.0f} s, starting, building vectors and"
        " confirming included"
    )
    ledger.add(
        what=f"{what}, end to end",
        value=3600 * two.candidates / two.seconds,
        note=note,
        **own,
        **rival,
    )
    ledger.add(what=f"{what}, steady state", value=two.steady, **own, **rival)
    ledger.add(
        part="search",
        what="of which the merge, one thread of two",
        value=two.materialize_seconds,
        unit="s",
        rival="the authors': load, add, save, load",
        rival_value=merge,
        target=Target(of="ratio", least=30),
        note=(
            "ours by one of two workers at work, orders and n:m changing; theirs alone on the"
            " machine, two threads"
        ),
    )
    ledger.add(
        part="search",
        what="two workers, one thread each, steady state",
        value=two.steady,
        unit="candidates/h",
        rival="one worker, one thread",
        rival_value=runs[1].steady,
        target=Target(of="ratio", least=1.8),
    )
    bare = in_fresh_process(bare_worker, spec)
    ledger.add(
        part="search",
        what="memory of two workers (PSS)",
        value=two.pss / 1e6,
        unit="MB",
        limit="one worker's, and a bare process with one model",
        limit_value=(runs[1].pss + bare) / 1e6,
        target=Target(of="over", most=1.1),
        note=(
            f"one worker {runs[1].pss / 1e6:.0f} MB; a process with model and heads that has merged"
            f" nothing {bare / 1e6:.0f} MB (USS); the cache and what is made ready of it should"
            " count once"
        ),
    )


def study() -> Spec:
    """Make a spec: CABS, two n:m, all orders of the quickstart, a λ for each of three experts."""
    spec = families.quickstart(TASKS, ITEMS)
    space = spec.space.replace(lambda_=Lambda(low=1.0, high=2.4, step=0.1))
    return replace(spec, space=space, search=replace(spec.search, confirm=1))


def searched(spec: Spec, workers: int, candidates: int, root: Path) -> Run:
    """Run one search with an empty cache."""
    os.environ["CABS_SEARCH_CACHE"] = str(root / f"cache{workers}")
    folder = root / f"study{workers}"
    spec = spec.override(trials=candidates, workers=workers)
    if workers == 1:  # Ray with one core, or the worker would use both for threads
        from cabs_search.cluster.driver import start_ray

        start_ray(cpus=1)
    start = time.perf_counter()
    with Watched() as watched:
        cabs_search.run(spec, folder, say=lambda _: None)
    seconds = time.perf_counter() - start
    found = Run(
        workers=workers,
        candidates=spec.search.trials,
        seconds=seconds,
        steady=steady(
            _asked(
                folder, "study.db", "select datetime_complete from trials where state = 'COMPLETE'"
            )
        ),
        materialize_seconds=statistics.median(
            _asked(
                folder, "mlflow.db", "select value from metrics where key = 'materialize_seconds'"
            )
        ),
        pss=watched.most,
    )
    shutil.rmtree(os.environ["CABS_SEARCH_CACHE"])
    return found


def _asked(folder: Path, database: str, question: str) -> list[Any]:
    with closing(sqlite3.connect(folder / database)) as opened:
        return [value for (value,) in opened.execute(question)]


def steady(completed: Sequence[str]) -> float:
    """Return candidates an hour after the first WARM, from ISO times of completion."""
    times = sorted(datetime.fromisoformat(text) for text in completed)
    first = times[int(WARM * len(times))]
    counted = sum(time > first for time in times)
    return 3600 * counted / (times[-1] - first).total_seconds()


class Watched:
    """Peak memory of Ray's busy workers, children of this process, sampled twice a second."""

    def __enter__(self) -> Watched:
        self.most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    name = " ".join(process.cmdline())
                    if name.startswith("ray::") and "IDLE" not in name:
                        total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.most = max(self.most, total)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def bare_worker(spec: Spec) -> int:
    """Measure the unshared bytes of a process that scored items with the base and all heads."""
    import ray.tune  # a worker has it too

    assert ray.tune
    torch.set_num_threads(1)
    with families.scratch() as cache:
        bench = program.workbench(spec, cache)
        items = {task: load_items(spec, task)["search"] for task in spec.tasks}
        program.score(bench, items, {task: np.arange(len(i)) for task, i in items.items()})
    return int(psutil.Process().memory_full_info().uss)


def by_authors(spec: Spec, rounds: int = 2) -> tuple[float, float]:
    """Return median seconds of a candidate and of its merge, on both cores, after a warm-up."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    items = {task: load_items(spec, task)["search"] for task in spec.tasks}
    given = {task: padded(found.rows, found.pad) for task, found in items.items()}
    family = Family.open(spec.base, spec.experts)
    lambdas = dict.fromkeys(spec.experts, 1.4)
    with threads(CORES), families.scratch() as folder:
        vectors = dense(family)
        authors = Authors(
            folder, Path(spec.base), {n: Path(p) for n, p in spec.experts.items()}, vectors
        )
        authors.merge(lambdas)
        whole, merges = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            models, seconds = authors.merge(lambdas)
            for task, rows in given.items():
                predict(models[task], rows, folder)
            whole.append(time.perf_counter() - start)
            merges.append(seconds)
    return statistics.median(whole), statistics.median(merges)


def dense(family: Family) -> dict[str, Mapping[str, torch.Tensor]]:
    """Return pruned vectors as the authors keep them: whole tensors, mostly zeros."""
    method = make_method("cabs", tuple(family.experts), nm=(3, 32))
    found: dict[str, Mapping[str, torch.Tensor]] = {}
    for expert, vector in program.vectors(VectorCache(cache_folder()), family, method).items():
        found[expert] = {
            name: torch.zeros(shape) for name, shape in family.alignment.shapes.items()
        }
        for name, out in found[expert].items():
            if (kept := vector.kept(name, out.numel())) is not None and kept.positions is not None:
                out.view(-1)[kept.positions] = kept.values
    return found
