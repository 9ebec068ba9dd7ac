"""A kind is added from outside: the file of docs/add-a-kind.md and its lines in a list."""

from __future__ import annotations

import ast
import csv
import json
import pickle
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from cabs_search.kinds.base import Kind
from cabs_search.kinds.registry import KINDS
from tests.conftest import pico_values, write_spec
from tests.support.outside import ROOT, add_value, blocks_of, copy_program, python

PAGE = "add-a-kind.md"


def test_an_added_kind_is_searched_and_recorded(pico: Path, tmp_path: Path) -> None:
    program = copy_program(tmp_path / "program")
    add_value(program, PAGE, "cabs_search/kinds/registry.py")
    with (pico / "animal.csv").open() as file:
        rows = list(csv.DictReader(file))
    stars = {row["text"].lower(): int(row["label"]) + 1 for row in rows}
    with (tmp_path / "animal.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "stars"), *stars.items()])
    (page_spec,) = blocks_of(PAGE, "yaml")
    values = pico_values(pico, trials=2, confirm=1, workers=1)
    values |= yaml.safe_load(page_spec) | {"baselines": {}}
    values["experts"], values["space"]["nm"] = {"animal": str(pico / "animal")}, "2:8"
    spec, out = write_spec(tmp_path / "spec.yaml", values), tmp_path / "out"
    command = ["-m", "cabs_search.cli", "run", str(spec), "--output", str(out), "--json"]
    board = json.loads(python(program, *command, cache=tmp_path / "cache"))
    best = next(row for row in board["rows"] if row["label"] == "best found")
    with closing(sqlite3.connect(out / "outcomes" / "outcomes.sqlite")) as db:
        labels = [json.loads(label) for (label,) in db.execute(
            "SELECT label FROM items WHERE split = 'confirm' ORDER BY position"
        )]  # fmt: skip
        blocks = db.execute(
            "SELECT scores, losses, predictions FROM blocks WHERE split = 'confirm' AND recipe = ?"
            " ORDER BY block",
            (best["key"],),
        ).fetchall()
    scores, losses = (np.frombuffer(b"".join(b[i] for b in blocks), "<f4") for i in (0, 1))
    predictions = [value for block in blocks for value in json.loads(block[2])]
    assert set(labels) == {0, 1, 2}
    assert len(predictions) == len(labels) == len(losses) > 20
    assert scores.tolist() == [float(p == t) for p, t in zip(predictions, labels, strict=True)]
    assert ((losses >= 0) & (losses <= 2)).all()
    assert best["tasks"]["animal"] == pytest.approx(scores.mean())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_kind_is_itself_in_another_process(kind: Kind) -> None:
    assert pickle.loads(pickle.dumps(kind)) == kind
    assert [other for other in KINDS if other == kind] == [kind]


def test_a_kinds_name_is_written_in_its_own_file_only() -> None:
    names = re.compile("|".join(rf"(?<![\w:-]){kind.name}(?![\w-])" for kind in KINDS))
    found = []
    for file in sorted((ROOT / "cabs_search").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [
            (file.stem.replace("_", "-"), node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in prose
            and names.search(node.value)
        ]
    assert found == [(kind.name, kind.name) for kind in sorted(KINDS, key=str)]


def test_reading_a_spec_loads_no_torch() -> None:
    modules = "cabs_search.kinds.registry, cabs_search.metrics.registry, cabs_search.tasks.items"
    code = (
        f"import sys, {modules}; print({{'torch', 'transformers', 'sklearn'}} & set(sys.modules))"
    )
    assert python(ROOT, "-c", code) == "set()\n"
