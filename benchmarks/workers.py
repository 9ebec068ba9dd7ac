"""Search with 1, 2 and 4 workers: same quality, and how long workers wait for candidates.

    python -m benchmarks.workers [--workers N ...] [--seeds N] [--items N]
    python -m benchmarks.workers --proposals 1000

Every seed draws other items and other proposals. *Waits* is the share of a worker's time in which
it had nothing to do, from its first candidate to the last that the sampler proposes freely (the
mean of the workers, and *longest* the most of one); the last two, which are the best predictions,
come one after another and are scored by all workers together. *Proposing* is the driver's time to
propose candidates, as a share of the workers' time to score them. What is found is kept in
docs/results/workers.json, where a run adds seeds. ``--proposals`` replays a search of so many
candidates, each on a block of items, and prints how long the last 50 proposals took one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from tqdm import tqdm

from benchmarks.search_rivals import Game, block_of, emulated, learn, surface_study
from cabs_search.cluster.dispatcher import Dispatcher, Report
from cabs_search.cluster.driver import search
from cabs_search.quickstart.experts import make
from cabs_search.record.folder import StudyFolder, StudyId, only_driver
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.jobs import Job
from cabs_search.search.study import Study, open_database
from cabs_search.spec.load import load, parse
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.workflows.prepare import prepare

FILE = Path(__file__).parents[1] / "docs" / "results" / "workers.json"


class TimedDispatcher(Dispatcher):
    """Keeps how long each worker scored and waited."""

    def __init__(self, study: TimedStudy, workers: int) -> None:
        super().__init__(study, workers)
        study.dispatcher = self
        self.times: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        """By worker: when a block's report came, seconds that it took, and waited before it."""

    def receive(self, worker: str, reports: Iterable[Report]) -> None:
        """Keep the times of a worker's reports."""
        reports = list(reports)
        for report in reports:
            assert report.result is not None, report.error
            seconds = report.result.materialize_seconds + report.result.evaluate_seconds
            self.times[worker].append((time.perf_counter(), seconds, report.waited_seconds))
        super().receive(worker, reports)

    def until(self, end: float) -> tuple[list[float], float]:
        """Return the share of its time that each worker waited, and seconds that all scored."""
        waits, scored = [], 0.0
        for of_worker in self.times.values():
            own = [(seconds, waited) for at, seconds, waited in of_worker if at <= end]
            busy = sum(seconds for seconds, _ in own)
            waited = sum(waited for _, waited in own[1:])  # before its first it was not asked
            waits.append(waited / (busy + waited))
            scored += busy
        return waits, scored


class TimedStudy(Study):
    """Keeps when the search's last candidate was given out, and how long proposing took."""

    def __init__(self, *study: Any, **settings: Any) -> None:
        super().__init__(*study, **settings)
        self.last = self.proposing = 0.0
        """Time of the last job that is not of what is recommended; seconds of all proposals."""
        self.dispatcher: TimedDispatcher

    def next_job(self, job_id: str) -> Job | None:
        """Note when a candidate was given out, and how long it took to propose it."""
        start = time.perf_counter()
        job = super().next_job(job_id)
        now = time.perf_counter()
        if job is not None and job.split == "search" and job.recipe.key not in self._due.whole:
            self.last = now
            self.proposing += now - start
        return job


def spec_of(workers: int, seed: int, items: int) -> Spec:
    """Return the quickstart's search with so many workers, without what refines it."""
    plain: dict[str, Any] = load("quickstart", locations=False).as_dict()
    plain |= {"name": f"workers {workers} seed {seed}", "seed": seed}
    plain["search"] |= {"items": items, "workers": workers, "confirm": 1, "confirm_stops": False}
    plain["search"].pop("refine", None)
    return parse(plain, plain["name"])


def play(spec: Spec, folder: Path) -> dict[str, float]:
    """Search, and return what was recommended and how busy workers were."""
    prepared = prepare(spec, folder, None, lambda _: None)
    spec = prepared.spec
    start = time.perf_counter()
    with only_driver(folder):
        outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks)
        outcomes.bind(spec, prepared.items, prepared.weights)
        database = open_database(spec, folder, StudyId(outcomes.study_id()))
        study = TimedStudy(spec, database, prepared.items, outcomes, confirms_references=False)
        with patch("cabs_search.cluster.driver.Dispatcher", TimedDispatcher):
            search(study, prepared.items, cache_folder())
    seconds = time.perf_counter() - start
    assert study.chosen is not None
    waits, scored = study.dispatcher.until(study.last)
    return {
        "score": outcomes.scored("confirm")[study.chosen.recipe.key].score,
        "candidates": study.done,
        "seconds": seconds,
        "waits": float(np.mean(waits)),
        "longest": max(waits),
        "proposing": study.proposing / scored,
    }


def seconds_of_proposal(space: str, candidates: int) -> float:
    """Return the mean seconds of the last 50 proposals of a replayed search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    game = Game(emulated(space), seed=0)
    _, study = surface_study(seed=0)
    seconds = []
    for _ in tqdm(range(candidates), desc=space):
        start = time.perf_counter()
        trial = study.ask()
        point = game.suggest(trial)
        seconds.append(time.perf_counter() - start)
        learn(study, trial, game.answers(point, [block_of(trial)]))
    return float(np.mean(seconds[-50:]))


def main() -> None:
    """Search, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=12_000, help="budget of each search")
    parser.add_argument("--proposals", type=int, help="only time proposals, after so many")
    options = parser.parse_args()
    if options.proposals:
        for space in ("task-arithmetic", "cabs"):
            seconds = seconds_of_proposal(space, options.proposals)
            print(f"{space}: {seconds:.3f} s for one of the last 50 proposals")
        return
    make()
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for seed in range(options.seeds):
        for workers in options.workers:
            of_count = kept.setdefault(f"{workers} workers, {options.items} items", [])
            if len(of_count) <= seed:
                with tempfile.TemporaryDirectory() as folder:
                    found = play(spec_of(workers, seed, options.items), Path(folder) / "study")
                of_count.append({name: round(value, 4) for name, value in found.items()})
                FILE.write_text(json.dumps(kept, indent=1) + "\n")
    for name, of_count in kept.items():
        means = {key: np.mean([one[key] for one in of_count]) for key in of_count[0]}
        print(name, len(of_count), *(f"{key} {mean:.3f}" for key, mean in means.items()))


if __name__ == "__main__":
    main()
