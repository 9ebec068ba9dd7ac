"""A search on two nodes of which only the head has the models, and one dies on the way."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cabs_search.results.leaderboard import read_leaderboard
from cabs_search.spec.load import load
from tests.conftest import pico_values, write_spec
from tests.support.cluster import TwoNodes

TRIALS = 60


def candidates(folder: Path) -> int:
    """Count candidates that have some items scored."""
    path = folder / "outcomes" / "outcomes.sqlite"
    if not path.is_file():
        return 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(db.execute("SELECT count(DISTINCT recipe) FROM blocks").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        db.close()


def rows(folder: Path) -> list[Any]:
    board = read_leaderboard(folder)
    assert board.candidates == TRIALS
    return [(row.key, row.label, row.score, row.tasks) for row in board.rows]


@pytest.mark.slow
def test_a_node_without_models_helps_and_dies(pico: Path, tmp_path: Path) -> None:
    """The leaderboard is that of an undisturbed run on this machine."""
    values = pico_values(pico, trials=TRIALS, block=4, sampler="random", pruner=None)
    values["space"]["method"] = ["cabs", "wanda"]  # the driver's node prunes for wanda
    spec = write_spec(tmp_path / "pico.yaml", values)
    command = [sys.executable, "-m", "cabs_search.cli", "run", str(spec)]
    nodes = TwoNodes(tmp_path / "nodes", hidden=pico)
    try:
        search = subprocess.Popen(
            [*command, "--output", str(tmp_path / "out"), "--address", nodes.address],
            env=nodes.environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        travelled = tmp_path / "nodes" / "node" / "travelled"
        while not (candidates(tmp_path / "out") >= 12 and list(travelled.glob("*/"))):
            assert search.poll() is None, search.communicate()[1][-3000:]
            time.sleep(0.1)
        time.sleep(1)
        assert candidates(tmp_path / "out") < TRIALS, "it was to die in the middle"
        nodes.kill_node()
        said = search.communicate(timeout=500)[1]
        assert search.returncode == 0, said[-3000:]
    finally:
        nodes.stop()
    copies = [path for path in travelled.iterdir() if path.is_dir()]
    assert len(copies) == 4, "base and experts, once"
    there = {path.name for path in (tmp_path / "nodes" / "node").rglob("vectors*/*.safetensors")}
    assert there
    found = subprocess.run(
        [*command, "--output", str(tmp_path / "same")],
        env=nodes.environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    assert load(tmp_path / "out" / "spec.yaml") == load(tmp_path / "same" / "spec.yaml")
    assert rows(tmp_path / "out") == rows(tmp_path / "same")
