"""Sampled runs of a study's finalists; the study is made without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cabs_search.cli import main
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.results.leaderboard import read_leaderboard
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.spec.load import parse
from cabs_search.spec.locations import cache_folder
from cabs_search.stats.independent import mean_interval, welch
from cabs_search.tasks.load import load_study_items
from cabs_search.workflows import sample as sampling
from cabs_search.workflows.sample import sample
from tests.conftest import write_spec
from tests.support.bench import Bench
from tests.support.standins import fields_of, make_base, make_expert, one_thread, write_data


class Scoring(Bench):
    """A driver that scores with the models themselves."""

    def result(self, job: Job, block: int) -> BlockResult:
        bench = Workbench(
            Family.open(self.spec.base, self.spec.experts),
            self.spec.tasks,
            VectorCache(cache_folder()),
            device="cpu",
        )
        bench.materialize(job.recipe)
        outcomes = bench.score(self.items[job.split], self.study.blocks[job.split][block])
        return BlockResult(
            block=block, outcomes=outcomes, materialize_seconds=0.1, evaluate_seconds=0.2
        )


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
        "search": {"sampler": "random", "trials": 2, "confirm": 1, "block": 8},
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
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sample(folder, runs=3, temperature=1.0, say=lambda _: None)
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
    made = list[int]()
    draw = sampling.generate

    def counted(*args: Any) -> Any:
        made.append(args[-1].seed)
        return draw(*args)

    monkeypatch.setattr(sampling, "generate", counted)
    assert main(["sample", str(folder), "--runs", "4", "--temperature", "1", "--json"]) == 0
    more = json.loads(capsys.readouterr().out)["rows"]
    assert made == [4] * len(found.rows), "what is on record is not repeated"
    assert [tuple(row["runs"][:3]) for row in more] == [row.runs for row in found.rows]
    assert main(["sample", str(folder), "--runs", "4", "--temperature", "1"]) == 0
    assert "4 runs of each at temperature 1" in capsys.readouterr().out


def test_what_cannot_be_sampled_is_refused(folder: Path, tmp_path: Path) -> None:
    for runs, temperature in ((1, 1.0), (3, 0.0), (3, float("nan"))):
        with pytest.raises(ValueError, match="runs >= 2 and temperature > 0 must hold"):
            sample(folder, runs=runs, temperature=temperature, say=print)
    with pytest.raises(ValueError, match="holds no study"):
        sample(tmp_path, runs=3, temperature=1.0, say=print)
    write_data(folder.parent / "generation.jsonl", "generation", 2, 16)
    with pytest.raises(ValueError, match="tasks.generation: the items must be those"):
        sample(folder, runs=3, temperature=1.0, say=print)
