"""Dispatcher without Ray: who gets which job when, and what is lost when somebody dies."""

from __future__ import annotations

import gc
import itertools
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cabs_search.cluster.dispatcher import AHEAD_SHARE, STEP_SECONDS, Batch, Dispatcher, Report
from cabs_search.cluster.driver import stop_ray
from cabs_search.kinds.base import Outcome
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.axes import axis_values
from cabs_search.search.candidates import Candidates
from cabs_search.search.jobs import BlockResult, Finished, Job, JobSource
from cabs_search.search.studies import PlannedStudy, Studies
from cabs_search.search.study import IsBusy, Study, open_database
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values

Fed = deque[tuple[str, Job, int]]


class Floor:
    """Workers that score by a formula, each block in ``seconds`` of a simulated clock."""

    def __init__(
        self,
        folder: Path,
        items: Any,
        specs: list[Spec],
        workers: int = 2,
        seconds: float = 0.01,
        references: bool = True,
    ) -> None:
        self.items, self.specs, self.seconds, self.references = items, specs, seconds, references
        self.outcomes = Outcomes(folder / "outcomes", specs[0].tasks)
        self.outcomes.bind(specs[0], items, {"base": "b"})
        self.finished: list[Finished] = []
        self.failing: set[str] = set()
        self.study: JobSource
        if len(specs) == 1:
            self.study = self.open(specs[0], folder, "")
        else:
            planned = {
                s.name: PlannedStudy(search=s.search, open=partial(self.open, s, folder, s.name))
                for s in specs
            }
            self.study = Studies(specs[0], items, self.outcomes, planned, lambda *_: None)
        self.dispatcher = Dispatcher(self.study, workers)
        self.todo: dict[str, Fed] = {}
        self.sent: list[tuple[str, Batch]] = []
        self.scored: list[tuple[str, str, int]] = []
        for i in range(workers):
            self.join(f"worker {i}")

    def open(
        self, spec: Spec, folder: Path, value: str, is_busy: IsBusy = lambda *_: False
    ) -> Study:
        database = open_database(spec, folder, StudyId(self.outcomes.study_id(), value))
        return Study(
            spec,
            database,
            self.items,
            self.outcomes,
            on_finished=self.finished.append,
            # as in a comparison, where the first study alone confirms them
            confirms_references=self.references and spec is self.specs[0],
            is_busy=is_busy,
        )

    def join(self, worker: str) -> None:
        self.todo[worker] = deque()

        def send(batch: Batch) -> None:
            self.sent.append((worker, batch))
            self.todo[worker] += [
                (job_id, job, block) for job_id, job in batch.items() for block in job.todo
            ]

        self.dispatcher.add_worker(worker, send)

    def step(self, worker: str) -> list[Report]:
        """Work as a worker does between two reports."""
        todo, reports, seconds = self.todo[worker], [], 0.0
        while todo and seconds < STEP_SECONDS:
            job_id, job, block = todo.popleft()
            if job.recipe.key in self.failing:
                reports.append(
                    Report(job_id=job_id, error="ValueError: the loss on mood is not finite")
                )
                while todo and todo[0][0] == job_id:
                    todo.popleft()
                continue
            self.scored.append((job.recipe.key, job.split, block))
            reports.append(Report(job_id=job_id, result=self.result(job, block)))
            seconds += self.seconds
        return reports

    def result(self, job: Job, block: int) -> BlockResult:
        quality = 1 - min(1.0, sum(abs(v - 0.8) for v in job.recipe.lambda_by_name.values()) / 3)
        outcomes = {}
        for task, rows in self.study.blocks[job.split][block].items():
            scores = (np.random.default_rng(list(rows)).random(len(rows)) < quality).astype(
                np.float32
            )
            labels = self.items[job.split][task].labels[rows]
            outcomes[task] = Outcome(scores, 1 - scores, np.where(scores > 0, labels, labels + 1))
        return BlockResult(
            block=block, outcomes=outcomes, materialize_seconds=0.0, evaluate_seconds=self.seconds
        )

    def run(self, steps: int = 10**6) -> None:
        """Let all workers work by turns until the search is over, or for so many steps."""
        self.dispatcher.flush_and_dispatch()
        while not self.dispatcher.is_finished and steps:
            for worker in list(self.todo):
                self.dispatcher.receive(worker, self.step(worker))
                self.dispatcher.flush_and_dispatch()
            steps -= 1


@pytest.fixture(scope="module")
def spec(pico: Path) -> Spec:
    return parse(pico_values(pico, trials=60))


@pytest.fixture(scope="module")
def items(spec: Spec) -> Any:
    return load_study_items(spec)


def jobs_of(floor: Floor) -> list[int]:
    return [
        len(batch)
        for _, batch in floor.sent
        if all(job.split == "search" for job in batch.values())
    ]


def test_small_candidates_go_out_together_and_the_budget_is_met(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    floor = Floor(tmp_path, items, [spec])
    floor.run()
    assert floor.study.is_finished
    assert floor.study.failure is None
    assert len(floor.outcomes.scored("search")) == 60
    assert len(floor.scored) == len(set(floor.scored)), "something was scored twice"
    most = int(60 * AHEAD_SHARE) // 2
    assert max(jobs_of(floor)) == most, "an eighth of the budget is out, at two workers"
    numbers = [f.number for f in floor.finished]
    assert len(numbers) == len(set(numbers)) == 60


def test_large_candidates_go_out_alone_and_before_a_worker_has_run_dry(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    floor = Floor(tmp_path, items, [spec], seconds=2.0)
    floor.dispatcher.flush_and_dispatch()
    for _ in range(10):
        for worker in floor.todo:
            floor.dispatcher.receive(worker, floor.step(worker))
            floor.dispatcher.flush_and_dispatch()
            blocks = floor.todo[worker]
            assert blocks, "a worker waits"
            assert len({job_id for job_id, _, _ in blocks}) <= 2
    assert set(jobs_of(floor)) == {1}


def test_no_worker_waits_while_the_budget_has_room(pico: Path, items: Any, tmp_path: Path) -> None:
    """A candidate that ends after its first block keeps no room for its other blocks."""
    spec = parse(pico_values(pico, sampler="surface", trials=None, items=1500, refine=None))
    floor = Floor(tmp_path, items, [spec], workers=4, seconds=0.4)
    block, whole = 3 * 8, 3 * 24
    kept = 2 * whole  # for what is recommended
    out = 2 * block
    floor.dispatcher.flush_and_dispatch()
    assert floor.study.budget > 2 * 1500 / whole, "candidates count as they will be scored"
    while floor.study.shares[0].spent < 1500 - kept - out:
        for worker in list(floor.todo):
            floor.dispatcher.receive(worker, floor.step(worker))
            floor.dispatcher.flush_and_dispatch()
            assert all(floor.todo.values()), floor.study.shares
    floor.run()
    assert 1500 - whole < floor.study.shares[0].spent <= 1500


def test_a_candidate_of_a_batch_fails_alone(spec: Spec, items: Any, tmp_path: Path) -> None:
    floor = Floor(tmp_path, items, [spec])
    floor.run(steps=2)
    _, batch = next((worker, batch) for worker, batch in reversed(floor.sent) if len(batch) > 1)
    bad = list(batch.values())[1].recipe
    floor.failing = {bad.key}
    floor.run()
    assert [(f.recipe, f.error) for f in floor.finished if f.state == "failed"] == [
        (bad, "ValueError: the loss on mood is not finite")
    ]
    assert len(floor.outcomes.scored("search")) == 59
    assert floor.study.done == 60


@pytest.mark.parametrize("unwritten", [True, False])
def test_a_driver_killed_in_the_middle_of_batches(
    spec: Spec, items: Any, tmp_path: Path, unwritten: bool
) -> None:
    """Recorded blocks are not scored again; unrecorded ones are, and no others."""
    floor = Floor(tmp_path, items, [spec])
    floor.run(steps=3)
    reports = floor.step("worker 0")[:4] if unwritten else []
    jobs = {job_id: job for _, batch in floor.sent for job_id, job in batch.items()}
    lost = {
        (jobs[r.job_id].recipe.key, jobs[r.job_id].split, r.result.block)
        for r in reports
        if r.result
    }
    floor.dispatcher.receive("worker 0", reports)
    written = {
        key
        for key in floor.scored
        if key[2] in floor.outcomes.done_blocks(recipe_of(floor, key[0]), "search")
    }
    again = Floor(tmp_path, items, [spec])
    again.run()
    assert not written & set(again.scored)
    assert lost <= set(again.scored)
    assert len(again.outcomes.scored("search")) == again.study.done == 60
    numbers = [f.number for f in again.finished]
    assert len(numbers) == len(set(numbers)) == 60, "nothing counts twice"


def recipe_of(floor: Floor, key: str) -> Any:
    return next(
        job.recipe for _, batch in floor.sent for job in batch.values() if job.recipe.key == key
    )


def test_a_candidate_that_kills_workers_takes_no_other_with_it(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    floor = Floor(tmp_path, items, [spec])
    floor.run(steps=2)
    poison = next(job for job_id, job, _ in floor.todo["worker 1"]).recipe.key
    floor.dispatcher.flush_and_dispatch()
    born = 2
    while not floor.dispatcher.is_finished:
        for worker in list(floor.todo):
            if any(job.recipe.key == poison for _, job, _ in floor.todo[worker]):
                del floor.todo[worker]
                floor.dispatcher.worker_died(worker)
                floor.join(f"worker {born}")
                born += 1
            else:
                floor.dispatcher.receive(worker, floor.step(worker))
            floor.dispatcher.flush_and_dispatch()
    failed = [(f.recipe.key, f.error) for f in floor.finished if f.state == "failed"]
    assert failed == [(poison, "its worker died 4 times")]
    assert len(floor.outcomes.scored("search")) == 59
    assert len(floor.scored) - len(set(floor.scored)) == 0


def test_studies_share_workers(pico: Path, items: Any, tmp_path: Path) -> None:
    values = axis_values(parse(pico_values(pico, trials=20)), ["nm"])
    rows = [value for value in values if value.same_as is None]
    floor = Floor(tmp_path, items, [row.spec for row in rows])
    assert floor.study.next_job("first") is not None
    floor.study.put_back("first")  # as before there are workers
    floor.run()
    assert floor.study.is_finished
    assert floor.study.failure is None
    assert floor.study.done == 20 * len(rows)
    assert len(floor.scored) == len(set(floor.scored))
    for row in rows:
        assert len(floor.outcomes.scored("search", Candidates.of(row.spec).includes)) == 20


def test_studies_of_one_record_score_experts_once(pico: Path, items: Any, tmp_path: Path) -> None:
    values = pico_values(pico, trials=3, sampler="random", objective="relative")
    spaces = [{"space": {"method": [name]}, "name": name} for name in ("cabs", "magnitude")]
    specs = [parse(values | space | {"baselines": {}}) for space in spaces]
    floor = Floor(tmp_path, items, specs, workers=4)
    floor.run()
    assert floor.study.failure is None
    assert floor.study.done == 6
    assert len(floor.scored) == len(set(floor.scored))


def test_a_search_that_fails_gives_nothing_more(spec: Spec, items: Any, tmp_path: Path) -> None:
    floor = Floor(tmp_path, items, [spec])
    floor.dispatcher.flush_and_dispatch()
    floor.dispatcher.stop("a worker could not start: OutOfMemoryError: no room")
    sent = len(floor.sent)
    floor.dispatcher.flush_and_dispatch()
    assert floor.dispatcher.is_finished
    assert len(floor.sent) == sent
    again = Floor(tmp_path, items, [spec])
    again.run(steps=1)
    assert {f.state for f in again.finished} == {"complete"}


def test_a_machine_that_is_full_ends_the_search_and_fails_no_candidate(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    floor = Floor(tmp_path, items, [spec])
    floor.run(steps=2)
    worker = next(name for name in floor.todo if floor.todo[name])
    job_id = floor.todo[worker][0][0]
    report = Report(job_id=job_id, error="OSError: [Errno 28] No space", is_machines=True)
    floor.dispatcher.receive(worker, [report])
    floor.dispatcher.flush_and_dispatch()
    assert floor.dispatcher.is_finished
    assert "No space" in str(floor.study.failure)
    assert {f.state for f in floor.finished} <= {"complete"}
    again = Floor(tmp_path, items, [spec])
    again.run()
    assert len(again.outcomes.scored("search")) == 60


def test_workers_that_never_start_end_the_search(spec: Spec, items: Any, tmp_path: Path) -> None:
    dispatcher = Dispatcher(Floor(tmp_path, items, [spec]).study, 1)
    for i in range(4):
        assert not dispatcher.is_finished
        dispatcher.worker_died(f"worker {i}")
        dispatcher.flush_and_dispatch()
    assert dispatcher.is_finished


def test_a_failed_study_leaves_its_rows_to_another(spec: Spec, items: Any, tmp_path: Path) -> None:
    """Another study confirms a row whose worker died just before its own study failed."""
    specs = [
        replace(spec, name=name, search=replace(spec.search, trials=1)) for name in ("one", "two")
    ]
    floor = Floor(tmp_path, items, specs)
    study = floor.study
    jobs = [study.next_job(str(i)) for i in range(2)]
    assert isinstance(jobs[1], Job)
    assert jobs[1].split == "confirm"
    study.job_lost("1")
    assert study.is_scoring(jobs[1].recipe, "confirm")
    study._opened["one"].stop("for a test")
    given = [study.next_job(str(i)) for i in range(2, 12)]
    assert not study._opened["one"].is_scoring(jobs[1].recipe, "confirm")
    assert jobs[1].recipe.key in [
        job.recipe.key for job in given if isinstance(job, Job) and job.split == "confirm"
    ]


def test_no_thread_collects_garbage_while_ray_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends the process if one of its references is freed during shutdown."""
    seen = []
    monkeypatch.setattr("ray.shutdown", lambda: seen.append(gc.isenabled()))
    stop_ray()
    assert seen == [False]
    assert gc.isenabled()


def test_a_study_that_fails_between_parts_holds_up_no_other(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    """Its row is in parts: one is at a worker, the others wait; the next study needs it, too."""
    values = pico_values(pico, trials=2, sampler="random", block=2, confirm=1)
    values["baselines"] = {"task-arithmetic": {"lambda": [0.5]}}
    specs = [parse(values | {"name": name}) for name in ("one", "two")]
    floor = Floor(tmp_path, items, specs, workers=8, references=False)
    study = floor.study
    for job_id in (f"mine {number}" for number in itertools.count()):
        job = study.next_job(job_id)
        assert job is not None
        if job.split == "confirm":
            break
        study.record([(job_id, floor.result(job, block)) for block in job.todo])
        study.finish(job_id)
    assert len(job.todo) < 12, "a part"
    study._opened["one"].stop("for a test")
    assert study.next_job("later") is None, "the other study waits for the row"
    study.record([(job_id, floor.result(job, block)) for block in job.todo])
    study.finish(job_id)
    assert not study.is_scoring(job.recipe, "confirm")
    floor.run(steps=300)
    assert study.is_finished


def test_workers_share_the_last_jobs(pico: Path, items: Any, tmp_path: Path) -> None:
    """A turn is a block of each worker; what is recommended is scored by all four together."""
    spec = parse(pico_values(pico, trials=8, sampler="surface", block=2, workers=4))
    turns, scored = dict[int, int](), dict[int, set[str]]()
    for sharing in (1, 4):
        folder = tmp_path / str(sharing)
        floor = Floor(folder, items, [spec], workers=4, seconds=1.0, references=False)
        floor.study.workers = sharing
        turns[sharing] = 0
        floor.dispatcher.flush_and_dispatch()
        while not floor.dispatcher.is_finished:
            turns[sharing] += 1
            for worker in list(floor.todo):
                floor.dispatcher.receive(worker, floor.step(worker))
            floor.dispatcher.flush_and_dispatch()
        assert floor.study.failure is None
        assert floor.study.done == 8
        assert len(floor.scored) == len(set(floor.scored)), "something was scored twice"
        scored[sharing] = set(floor.outcomes.scored("search"))
    assert scored[1] == scored[4]
    assert turns[4] <= turns[1] - 8
