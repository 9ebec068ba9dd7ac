"""Sampled runs of a study's finalists; the study is made without Ray."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cabs_search.cli import main
from cabs_search.cluster import driver
from cabs_search.kinds.generation import Sampling
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import Outcomes
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import read_leaderboard
from cabs_search.scoring.generate import generate
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.jobs import BlockResult, Job, JobSource
from cabs_search.search.sampled import SampledRuns
from cabs_search.spec.generator import Generator
from cabs_search.spec.load import load, parse
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.stats.independent import mean_interval, welch
from cabs_search.tasks.load import load_study_items
from cabs_search.tracking.study_runs import find_runs
from cabs_search.workflows.sample import sample
from tests.conftest import write_spec
from tests.support.bench import Bench
from tests.support.standins import fields_of, make_base, make_expert, one_thread, write_data


class Scoring(Bench):
    """A driver that scores with the models themselves."""

    def __init__(self, spec: Spec, folder: Path, items: Any) -> None:
        family = Family.open(spec.base, spec.experts)
        weights = {"base": family.base.fingerprint} | family.fingerprints
        super().__init__(spec, folder, items, weights)

    def result(self, job: Job, block: int) -> BlockResult:
        return scored(self.spec, self.items, self.study.blocks, job, block)


BENCHES: dict[str, Workbench] = {}


def scored(spec: Spec, items: Any, blocks: Any, job: Job, block: int) -> BlockResult:
    if spec.base not in BENCHES:
        family, vectors = Family.open(spec.base, spec.experts), VectorCache(cache_folder())
        BENCHES[spec.base] = Workbench(family, spec.tasks, vectors, device="cpu")
    bench = BENCHES[spec.base]
    bench.materialize(job.recipe)
    outcomes = bench.score(items[job.split], blocks[job.split][block], sampling=job.sampling)
    return BlockResult(
        block=block, outcomes=outcomes, materialize_seconds=0.1, evaluate_seconds=0.2
    )


class KilledError(Exception):
    pass


class Workers:
    """Two workers without Ray, in place of ``cluster.driver.search``; killed after some blocks."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any, int]] = []
        self.left = 10**9
        self.lose = False

    def search(self, source: JobSource, items: Any, *_: Any, **__: Any) -> None:
        live: dict[str, Job] = {}
        with source.connected():
            for count in range(10**6):
                while len(live) < 2 and (job := source.next_job(f"{count} {len(live)}")):
                    live[f"{count} {len(live)}"] = job
                if not live:
                    break
                name, job = next(iter(live.items()))
                if self.lose:
                    self.lose = False
                    source.job_lost(name)
                    del live[name]
                    continue
                for block in job.todo:
                    if not self.left:
                        raise KilledError
                    self.left -= 1
                    result = scored(source.spec, items, source.blocks, job, block)
                    source.record([(name, result)])
                    self.done.append((job.recipe.key, job.sampling, block))
                del live[name]
                source.finish(name)
        assert source.is_finished


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(driver, "search", found.search)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a study with a task that generates and one that does not."""
    root = tmp_path_factory.mktemp("sampled")
    base = make_base(root / "base", "llama")
    for seed, kind in enumerate(("generation", "language-modeling"), 1):
        make_expert(root / kind, base, "llama", kind, seed)
    tasks = {}
    for kind in ("generation", "language-modeling"):
        rows = write_data(root / f"{kind}.jsonl", kind, 1, 16)
        tasks[kind] = fields_of(kind) | {"dataset": {"json": str(rows)}}
    values = {
        "name": "sampled",
        "base": str(base),
        "experts": {name: str(root / name) for name in tasks},
        "tasks": tasks,
        "baselines": {"task-arithmetic": {"lambda": [0.7]}},
        "search": {"sampler": "random", "trials": 2, "confirm": 1, "block": 4},
        "device": "cpu",
    }
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("CABS_SEARCH_CACHE", str(root / "cache"))
        spec = parse(values)
        bench = Scoring(spec, root / "out", load_study_items(spec))
        bench.run()
        write_spec(root / "out" / "spec.yaml", spec.as_dict())
        yield root / "out"


def test_runs_are_made_once_and_compared(
    folder: Path, workers: Workers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after a kill in the middle of a run, and with a worker that died over one."""
    workers.left, workers.lose = 3, True
    with pytest.raises(KilledError):
        sample(folder, runs=3, temperature=1.0, say=str)
    assert read_leaderboard(folder).sampled == (), "no run but one is whole"
    workers.left = 10**9
    found = sample(folder, runs=3, temperature=1.0, say=str)
    board = read_leaderboard(folder)
    assert found.tasks == ("generation",)
    assert {"base", "expert generation", board.baseline} <= {row.label for row in found.rows}
    by_label = {row.label: row for row in found.rows}
    other = by_label[str(board.baseline)]
    assert len(set(by_label["expert generation"].runs)) > 1, "seeds differ"
    assert by_label["expert generation"].mean > by_label["base"].mean
    for row in found.rows:
        assert row.greedy == board.row(row.label).tasks["generation"]
        assert row.mean == pytest.approx(np.mean(row.runs))
        assert row.interval == mean_interval(row.runs)
        tested = None if row is other else welch(row.runs, other.runs).p_value
        assert row.welch_p == tested
    assert max(Counter(workers.done).values()) == 1, "no block is done twice"
    assert len(workers.done) == len(found.rows) * 3 * 2, "of two blocks each"
    assert main(["sample", str(folder), "--runs", "4", "--temperature", "1", "--json"]) == 0
    more = json.loads(capsys.readouterr().out)["rows"]
    assert [tuple(row["runs"][:3]) for row in more] == [row.runs for row in found.rows]
    assert max(Counter(workers.done).values()) == 1
    assert {run.seed for _, run, _ in workers.done} == {1, 2, 3, 4}
    assert main(["sample", str(folder), "--runs", "4", "--temperature", "1"]) == 0
    assert len(workers.done) == len(found.rows) * 4 * 2, "what is on record is not repeated"
    assert "4 runs of each at temperature 1" in capsys.readouterr().out


def test_runs_score_what_the_model_writes_by_itself(folder: Path, workers: Workers) -> None:
    """One run by hand: every item alone, with the kind's metric."""
    found = sample(folder, runs=2, temperature=0.5, say=str)
    spec = load(folder / "spec.yaml")
    items = load_study_items(spec)["confirm"]["generation"]
    model = transformers.AutoModelForCausalLM.from_pretrained(spec.base, dtype=torch.float32).eval()
    base = next(row for row in found.rows if row.label == "base")
    for seed, score in enumerate(base.runs, 1):
        drawn = Sampling(temperature=0.5, seed=seed)
        texts = [
            generate(model, items, np.array([i]), torch.device("cpu"), drawn)[0]
            for i in range(len(items))
        ]
        right = [t.strip() in items.rows[i].label for i, t in enumerate(texts)]
        assert score == pytest.approx(np.mean(right))


def test_reports_and_mlflow_have_the_runs(
    folder: Path, workers: Workers, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = Outcomes(folder / "outcomes", load(folder / "spec.yaml").tasks)
    study_id = StudyId(outcomes.study_id())
    runs = find_runs(folder, None, study_id, "sampled", "sampled")
    runs.client.set_terminated(runs.parent_id)
    found = sample(folder, runs=2, temperature=2.0, say=str)
    board = read_leaderboard(folder)
    assert found in board.sampled
    assert board.chosen is not None
    chosen = found.row(board.chosen.key)
    assert chosen is not None
    page = (folder / "report.html").read_text()
    assert "Texts drawn at random: 2 runs of each at temperature 2" in page
    assert "sampled: 2 runs of each at temperature 2" in leaderboard_text(board)
    run = runs.client.get_run(runs.parent_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["sampled.2.score"] == chosen.mean
    assert run.data.metrics["sampled.2.low"] == chosen.interval[0]
    note = run.data.tags["mlflow.note.content"]
    assert f"Sampled 2 times at temperature 2, {chosen.label} scores {chosen.mean:.4f}" in note
    assert '"tables/sampled.json"' in run.data.tags["mlflow.loggedArtifacts"]
    table = json.loads(
        (
            folder / "artifacts" / runs.parent_id / "artifacts" / "tables" / "sampled.json"
        ).read_text()
    )
    row = dict(
        zip(
            table["columns"],
            next(r for r in table["data"] if r[:2] == [2.0, chosen.label]),
            strict=True,
        )
    )
    assert row["runs"] == 2
    assert row["mean"] == pytest.approx(chosen.mean, abs=1e-4)
    assert row["Welch p"] == chosen.welch_p


def test_a_run_that_workers_die_over_ends_all(folder: Path) -> None:
    spec = load(folder / "spec.yaml")
    items = {"generation": load_study_items(spec)["confirm"]["generation"]}
    recipe = make_recipe(
        make_method("task-arithmetic", tuple(spec.experts)), dict.fromkeys(spec.experts, 0.1)
    )
    outcomes = Outcomes(folder / "outcomes", spec.tasks)
    source = SampledRuns(spec, outcomes, items, [recipe], [Sampling(temperature=9.0, seed=1)])
    for death in range(4):
        job = source.next_job(str(death))
        assert job is not None
        assert job.alone == (death > 0)
        source.job_lost(str(death))
    assert source.is_finished
    assert source.failure == f"{recipe} cannot be sampled: 4 workers died over it"
    assert source.next_job("x") is None


def test_what_cannot_be_sampled_is_refused(folder: Path, workers: Workers, tmp_path: Path) -> None:
    for runs, temperature in ((1, 1.0), (3, 0.0), (3, float("nan"))):
        with pytest.raises(ValueError, match="runs >= 2 and temperature > 0 must hold"):
            sample(folder, runs=runs, temperature=temperature, say=str)
    with pytest.raises(ValueError, match="holds no study"):
        sample(tmp_path, runs=3, temperature=1.0, say=str)
    spec = load(folder / "spec.yaml")
    other = replace(spec, generator=Generator(engine="vllm"))
    family, outcomes = (
        Family.open(spec.base, spec.experts),
        Outcomes(folder / "outcomes", spec.tasks),
    )
    weights = {"base": family.base.fingerprint} | family.fingerprints
    outcomes.bind(spec, load_study_items(spec), weights)
    with pytest.raises(ValueError, match=r"another study \(generator.engine differs\)"):
        outcomes.bind(other, load_study_items(other), weights)
    write_data(folder.parent / "generation.jsonl", "generation", 2, 16)
    with pytest.raises(ValueError, match="tasks.generation: the items must be those"):
        sample(folder, runs=3, temperature=1.0, say=str)


@pytest.mark.slow
def test_workers_of_ray_sample_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's texts depend on item and seed alone, and nothing starts where all is on record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "search", Workers().search)
        here = sample(folder, runs=2, temperature=0.8, say=str)
    outcomes = Outcomes(folder / "outcomes", load(folder / "spec.yaml").tasks)
    with outcomes.transaction() as db:
        db.execute("DELETE FROM sampled WHERE temperature = 0.8 AND NOT (seed = 1 AND block = 0)")
    assert sample(folder, runs=2, temperature=0.8, workers=1, say=str) == here
    monkeypatch.setattr(driver, "start_ray", None)
    assert sample(folder, runs=2, temperature=0.8, say=str) == here
