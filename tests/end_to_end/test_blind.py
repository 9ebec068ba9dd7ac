"""Searches do not see confirm items: with all their labels wrong, every bit stays the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import Outcomes
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.jobs import BlockResult
from cabs_search.search.study import Study, open_database
from cabs_search.spec.load import parse
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from cabs_search.workflows.run import run
from tests.conftest import pico_values

AllItems = Mapping[Any, Mapping[str, Any]]
CLASSES = {"mood": 2, "animal": 3, "pair": 2}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CABS_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def make_spec(pico: Path, sampler: str) -> Spec:
    return parse(pico_values(pico, trials=12, workers=1, sampler=sampler, confirm=3))


def poisoned(items: AllItems) -> AllItems:
    """Return the same items, every label of the confirm split replaced by another one."""
    confirm = {
        task: replace(
            of, rows=tuple(replace(row, label=(row.label + 1) % CLASSES[task]) for row in of.rows)
        )
        for task, of in items["confirm"].items()
    }
    return {**items, "confirm": confirm}


def search_of(folder: Path) -> dict[str, Any]:
    """Read all that a search leaves: proposals, values, outcomes, rows it confirms, in order."""
    with closing(sqlite3.connect(folder / "outcomes" / "outcomes.sqlite")) as db:
        columns = "recipe, block, task, scores, losses, predictions"
        blocks = db.execute(
            f"SELECT {columns} FROM blocks WHERE split = 'search' ORDER BY recipe, block, task"
        )
        found = {"blocks": blocks.fetchall()}
        found["recipes"] = [
            r for (r,) in db.execute("SELECT DISTINCT recipe FROM blocks WHERE split = 'search'")
        ]
        confirmed = db.execute(
            "SELECT DISTINCT recipe FROM blocks WHERE split = 'confirm' ORDER BY rowid"
        )
        found["confirmed"] = [r for (r,) in confirmed]
    with closing(sqlite3.connect(folder / "study.db")) as db:
        for table, order in (
            ("trial_params", "trial_id, param_name"),
            ("trial_values", "trial_id"),
        ):
            found[table] = db.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()
    assert found["blocks"]
    assert found["trial_params"]
    return found


def confirm_scores(folder: Path, spec: Spec) -> list[float]:
    return [
        scored.score
        for scored in Outcomes(folder / "outcomes", spec.tasks).scored("confirm").values()
    ]


def run_in_turn(spec: Spec, folder: Path, items: AllItems) -> None:
    """Run a study in this process, block by block, so that proposals depend on no clock."""
    outcomes = Outcomes(folder / "outcomes", spec.tasks)
    outcomes.bind(spec, items, {"base": "b"})
    database = open_database(spec, folder, StudyId(outcomes.study_id()))
    study, bench = (
        Study(spec, database, items, outcomes),
        Workbench(
            Family.open(spec.base, spec.experts),
            spec.tasks,
            VectorCache(cache_folder()),
            device=spec.device,
        ),
    )
    count = 0
    while job := study.next_job(str(count)):
        bench.materialize(job.recipe)
        for block in job.todo:
            scored = bench.score(items[job.split], study.blocks[job.split][block])
            found = BlockResult(
                block=block, outcomes=scored, materialize_seconds=0.0, evaluate_seconds=0.0
            )
            study.record([(str(count), found)])
        study.finish(str(count))
        count += 1
    assert study.is_finished
    assert study.failure is None


def test_a_search_is_the_same_with_poisoned_confirm_items(pico: Path, tmp_path: Path) -> None:
    spec = make_spec(pico, "tpe")
    items = load_study_items(spec)
    found = {}
    for name, these in (("clean", items), ("poisoned", poisoned(items))):
        run_in_turn(spec, tmp_path / name, these)
        found[name] = search_of(tmp_path / name)
    assert found["clean"] == found["poisoned"]
    clean, dirty = (np.array(confirm_scores(tmp_path / name, spec)) for name in found)
    assert np.abs(clean - dirty).min() > 0.01  # the poison was there


def test_a_poisoned_search_item_is_noticed(pico: Path, tmp_path: Path) -> None:
    """One wrong label in the search split shows: the comparison above can fail."""
    spec = make_spec(pico, "tpe")
    items = load_study_items(spec)
    mood = items["search"]["mood"]
    rows = (replace(mood.rows[0], label=1 - mood.rows[0].label), *mood.rows[1:])
    touched = {**items, "search": {**items["search"], "mood": replace(mood, rows=rows)}}
    run_in_turn(spec, tmp_path / "clean", items)
    run_in_turn(spec, tmp_path / "touched", touched)
    assert search_of(tmp_path / "clean") != search_of(tmp_path / "touched")


@pytest.mark.slow  # without workers it is above
def test_a_search_by_workers_is_the_same_with_poisoned_confirm_items(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same by Ray, with proposals that do not depend on which candidate ended first."""
    spec = make_spec(pico, "random")
    found = []
    for name, change in (("clean", lambda items: items), ("poisoned", poisoned)):
        monkeypatch.setattr(
            "cabs_search.workflows.prepare.load_study_items",
            lambda spec, change=change: change(load_study_items(spec)),
        )
        run(spec, tmp_path / name, say=lambda _: None)
        found.append(search_of(tmp_path / name))
    assert found[0] == found[1]
