"""A study and a comparison with an ensemble: rows, cost, resuming, and what refuses it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cabs_search.cli.main import main
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.results.leaderboard import read_leaderboard
from cabs_search.results.read_comparison import read_comparison
from cabs_search.scoring.ensemble import score_ensemble
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.candidates import ensemble_recipes
from cabs_search.spec.load import load
from cabs_search.tasks.load import load_study_items
from tests.conftest import EXPERTS, pico_values, write_spec
from tests.end_to_end.test_run import call
from tests.support.records import record_of


@pytest.fixture(scope="module")
def study(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a study whose record lacks a block of the ensemble, and go on with it."""
    root = tmp_path_factory.mktemp("study")
    values = pico_values(pico, trials=4) | {"ensembles": ["mean"]}
    spec = write_spec(root / "pico.yaml", values)
    call("run", spec, "--output", root / "out", cache=root / "cache")
    (recipe,) = ensemble_recipes(load(spec)).values()
    with closing(sqlite3.connect(record_of(root / "out").path)) as db, db:
        query = "DELETE FROM blocks WHERE recipe = ? AND split = 'confirm' AND block = 1"
        assert db.execute(query, (recipe.key,)).rowcount == len(EXPERTS)
    found = call("run", spec, "--output", root / "out", cache=root / "cache")
    (root / "out" / "stdout").write_text(found.stdout)
    return root / "out"


def test_its_row_is_scored_as_the_models_are_by_themselves(study: Path, pico: Path) -> None:
    spec, board = load(study / "spec.yaml"), read_leaderboard(study)
    row = board.row("ensemble mean")
    assert (row.role, row.recipe, row.key, row.forwards) == ("ensemble", None, None, 3)
    assert {other.forwards for other in board.rows if other is not row} == {1}
    assert "3 forwards an item (no model)" in row.text
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    bench = Workbench(family, spec.tasks, VectorCache(study.parent / "cache"), device="cpu")
    items = load_study_items(spec)["confirm"]
    (recipe,) = ensemble_recipes(spec).values()
    rows = {task: np.arange(len(its)) for task, its in items.items()}
    outcomes = score_ensemble(bench, recipe, items, rows)
    known = record_of(study).scored_one("confirm", recipe)
    assert known is not None
    for task, outcome in outcomes.items():
        assert known.tasks[task].predictions.tolist() == outcome.predictions.tolist()
        assert known.tasks[task].losses == pytest.approx(outcome.losses, abs=1e-6)
        assert row.tasks[task] == pytest.approx(outcome.scores.mean())


def test_its_cost_counts_every_model(study: Path) -> None:
    board = read_leaderboard(study)
    # base, three experts, two best shared-λ rows or found ones: some rows are one model
    models = {row.key for row in board.rows if row.key is not None}
    assert board.spent.items["confirm"] == (len(models) + 3) * 72


def test_terminal_page_and_mlflow_show_it(study: Path) -> None:
    text = (study / "stdout").read_text()
    head = next(line for line in text.splitlines() if " forwards " in line)
    line = next(line for line in text.splitlines() if line.startswith("ensemble mean "))
    assert line[head.index("forwards") :].startswith("3 ")
    assert "ensemble mean" in (study / "report.html").read_text()
    files = list(study.rglob("leaderboard.json"))
    assert any("ensemble mean" in file.read_text() for file in files)


def test_export_refuses_it_in_one_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(study), "--trial", "ensemble mean", "--to", str(tmp_path / "to")]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        "cabs-search: --trial: ensemble mean is no single model: it is the mean of the outputs of"
        " mood, animal, pair\n"
    )
    assert not (tmp_path / "to").exists()


def test_plan_counts_its_passes(
    pico: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {}
    for name, ensembles in (("without", []), ("with", ["mean"])):
        values = pico_values(pico, trials=4) | {"ensembles": ensembles}
        assert main(["plan", str(write_spec(tmp_path / name, values)), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["with"]["rows"] == found["without"]["rows"] + 1
    assert found["with"]["confirm_items"] == found["without"]["confirm_items"] + 3 * 72


def test_it_is_a_row_of_a_comparison_once(pico: Path, tmp_path: Path) -> None:
    values = pico_values(pico, trials=3) | {"ensembles": ["mean"]}
    spec = write_spec(tmp_path / "pico.yaml", values)
    over = "method=cabs-rounds,cabs-relative"
    found = call("compare", spec, "--over", over, "--output", tmp_path / "out", cache=tmp_path)
    rows = [line.split("  ")[0] for line in found.stdout.splitlines()]
    for label in ("ensemble mean", "cabs-rounds", "cabs-relative"):
        assert rows.count(label) == 1
    assert "not run" not in found.stdout
    alone = {row.label: row for row in read_comparison(tmp_path / "out").alone}
    assert alone["ensemble mean"].forwards == 3
