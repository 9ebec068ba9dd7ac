"""A search over two tuned language models, scored for real: killed, resumed, refined, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.results.leaderboard import build_leaderboard
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from tests.support.bench import Bench
from tests.support.standins import fields_of, make_base, make_expert, one_thread, write_data

TASKS = {"choose": "choices-by-likelihood", "read": "language-modeling"}


class Scored(Bench):
    """A bench whose blocks are scored by a resident model, as a worker does."""

    def __init__(self, spec: Spec, folder: Path, items: Any) -> None:
        super().__init__(spec, folder, items)
        family = Family.open(spec.base, spec.experts)
        cache = VectorCache(folder / "cache")
        self.workbench = Workbench(family, spec.tasks, cache, device="cpu")

    def result(self, job: Job, block: int) -> BlockResult:
        self.scored.append((job.recipe.key, job.split, block))
        self.workbench.materialize(job.recipe)
        rows = self.study.blocks[job.split][block]
        outcomes = self.workbench.score(self.items[job.split], rows)
        return BlockResult(
            block=block, outcomes=outcomes, materialize_seconds=0.1, evaluate_seconds=0.2
        )


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    root = tmp_path_factory.mktemp("decoders")
    base, splits = make_base(root / "base", "llama"), {"items": 24}
    experts, tasks = {}, {}
    with one_thread():
        for seed, (name, kind) in enumerate(TASKS.items(), 1):
            experts[name] = str(make_expert(root / name, base, "llama", kind, seed))
            rows = write_data(root / f"{name}.json", kind, seed, 80)
            data = {"dataset": {"json": str(rows)}, "search": splits, "confirm": splits}
            tasks[name] = data | fields_of(kind)
    return parse(
        {
            "name": "decoders",
            "base": str(base),
            "experts": experts,
            "tasks": tasks | {"norm": tasks["choose"] | {"metric": "acc_norm"}},
            "space": {"nm": "2:8", "lambda": {"low": 0.0, "high": 1.5, "step": 0.1}},
            "baselines": {"task-arithmetic": {"lambda": [0.5]}},
            "search": {"trials": 6, "block": 8, "confirm": 2, "objective": "relative"},
            "device": "cpu",
        }
    )


def test_a_search_over_language_models_is_killed_resumed_and_reported(
    spec: Spec, tmp_path: Path
) -> None:
    items = load_study_items(spec)
    choose, norm = (items["search"][task] for task in ("choose", "norm"))
    assert [row.targets for row in choose.rows] == [row.targets for row in norm.rows]
    first = Scored(spec, tmp_path, items)
    first.run(blocks=10)
    second = Scored(spec, tmp_path, items)
    second.run()
    scored = first.scored + second.scored
    assert len(scored) == len(set(scored)), "nothing is scored twice"
    board = build_leaderboard(spec, second.outcomes)
    for task in TASKS:
        assert board.row(f"expert {task}").tasks[task] > board.row("base").tasks[task] + 0.1
    experts = [board.row(f"expert {name}") for name in TASKS]
    for task in spec.tasks:
        assert board.row("ideal").tasks[task] == max(row.tasks[task] for row in experts)
    found = board.row("best found")
    low, high = found.interval
    assert low <= found.score <= high
    recorded = second.outcomes.scored("confirm")[str(found.key)]
    logs, sizes = recorded.tasks["read"].predictions, items["confirm"]["read"].labels
    assert found.tasks["read"] == pytest.approx(np.exp(logs.sum() / sizes.sum()))
