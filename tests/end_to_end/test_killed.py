"""A run that is killed or interrupted, or whose workers are, goes on where it was."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from cabs_search.cli.main import main
from cabs_search.merging.recipe import Recipe
from cabs_search.results.leaderboard import read_leaderboard
from cabs_search.spec.load import load, load_plain
from tests.conftest import EXPERTS, pico_values, write_spec
from tests.end_to_end.test_run import COMMAND, call, check_complete, children, environment, trials
from tests.support.records import record_of
from tests.support.standins import fields_of, make_base, make_expert, one_thread, write_data


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Running:
    """Start a run in the background, to be killed."""

    def __init__(self, spec: Path, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        command = [*COMMAND, "run", str(spec), "--output", str(folder)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=environment(cache), stdout=log, stderr=log)

    def blocks(self) -> int:
        path = self.folder / "outcomes" / "outcomes.sqlite"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(path, timeout=30)) as db:
            try:
                return int(db.execute("SELECT count(*) FROM blocks").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    def wait_for_blocks(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while self.blocks() < count and self.process.poll() is None:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def text(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        return self.process.wait(timeout=300)

    def workers(self) -> list[psutil.Process]:
        """Return Ray's workers; waits until there are some."""
        deadline = time.monotonic() + 60
        while not (found := [p for p in self.family() if is_worker(p)]):
            assert time.monotonic() < deadline, [p.cmdline() for p in self.family()]
            time.sleep(0.1)
        return found

    def family(self) -> list[psutil.Process]:
        return [
            psutil.Process(self.process.pid),
            *psutil.Process(self.process.pid).children(recursive=True),
        ]


def is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "ResourceTrainable" in " ".join(process.cmdline())
    return False


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Wait for all but Ray's agents, which take a minute to notice that their driver is gone."""

    def name(process: psutil.Process) -> str:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.name()
        return "Agent"

    deadline = time.monotonic() + 60
    while left := [p for p in processes if p.is_running() and "Agent" not in name(p)]:
        assert time.monotonic() < deadline, f"these outlive their driver: {left}"
        time.sleep(0.1)


LONG = 100
"""Number of candidates, of some 30 ms each."""
DECODER_TRIALS = 100


@pytest.fixture
def long_spec(pico: Path, tmp_path: Path) -> Path:
    """Write the spec of a search, over anchors, that is long enough to be killed on the way."""
    values = pico_values(pico, trials=LONG, block=4)
    values["space"]["lambda"]["anchors"] = 2
    return write_spec(tmp_path / "pico.yaml", values)


@pytest.mark.parametrize(
    "ends",
    [
        {signal.SIGKILL: -9, signal.SIGTERM: 143},
        pytest.param({signal.SIGINT: 130}, marks=pytest.mark.slow),  # SIGTERM goes the same way
    ],
    ids=["killed", "interrupted"],
)
def test_a_driver_that_is_killed_or_interrupted_goes_on(
    long_spec: Path, shared_cache: Path, tmp_path: Path, ends: dict[signal.Signals, int]
) -> None:
    folder, draw = tmp_path / "out", random.Random()
    for end, status in ends.items():
        run = Running(long_spec, folder, shared_cache)
        run.wait_for_blocks(run.blocks() + draw.randint(1, 60))
        if end == signal.SIGKILL:
            check_alone(run, long_spec, shared_cache)
        time.sleep(draw.random())
        assert run.process.poll() is None, run.text()
        family = run.family()
        run.process.send_signal(end)
        code = run.wait()
        wait_until_gone(family)
        assert code == status, run.text()
        if status > 0:
            said = "terminated" if end == signal.SIGTERM else "interrupted"
            assert f"{said}; the same command goes on where it stopped" in run.text()
            assert "Traceback" not in run.text()
    last = Running(long_spec, folder, shared_cache)
    for _ in range(2):
        last.wait_for_blocks(last.blocks() + 20)
        last.workers()[0].send_signal(signal.SIGKILL)
    assert last.wait() == 0, last.text()
    check_complete(folder, LONG)
    check_anchors(folder)


@pytest.mark.slow
def test_a_model_that_changes_ends_the_search(
    pico: Path, tmp_path: Path, shared_cache: Path
) -> None:
    """A base that is cut while workers have it mapped, and an expert that another one replaces."""
    values = pico_values(pico, trials=LONG, block=4)
    folders = {name: shutil.copytree(pico / name, tmp_path / name) for name in ("base", "mood")}
    values["base"], values["experts"]["mood"] = str(folders["base"]), str(folders["mood"])
    spec, folder = write_spec(tmp_path / "pico.yaml", values), tmp_path / "out"
    for name, other in (("base", None), ("mood", pico / "base")):
        file = folders[name] / "model.safetensors"
        run = Running(spec, folder, shared_cache)
        run.wait_for_blocks(run.blocks() + 10)
        assert run.process.poll() is None, run.text()
        if other is None:
            os.truncate(file, 1000)
        else:
            shutil.copy(other / file.name, file)
        assert run.wait() == 1, run.text()
        line = run.text().splitlines()[-1]
        assert f"{file}: changed during the search; if it is put back" in line or (
            f"could not start: ValueError: {name}: {file}: cannot be read" in line
        ), run.text()
        assert "Traceback" not in run.text()
        shutil.copy(pico / name / file.name, file)
    last = Running(spec, folder, shared_cache)
    assert last.wait() == 0, last.text()
    check_complete(folder, LONG)


def check_alone(run: Running, spec: Path, cache: Path) -> None:
    """Check that a run listens on loopback only, and lets no other one into its folder."""
    listening = {
        c.laddr.ip
        for p in run.family()
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    second = call("run", spec, "--output", run.folder, cache=cache, status=1)
    assert "another cabs-search is at work here" in second.stderr


def check_anchors(folder: Path) -> None:
    """Check that a study over two anchors shows them wherever it shows λ."""
    assert load(folder / "spec.yaml").space.lambda_.layers == 2
    searched = record_of(folder).scored("search").values()
    anchored = [scored.recipe for scored in searched if scored.recipe.layers]
    assert len(anchored) > LONG / 2
    params = [run.data.params for run in children(folder)]
    shown = [p for p in params if p.get("layers") == "2"]
    assert len(shown) == len(anchored)
    assert all({f"lambda.{e}.{n}" for e in EXPERTS for n in "12"} <= p.keys() for p in shown)
    names = {name for trial in trials(folder) for name in trial.params if "lambda" in name}
    assert names == {f"lambda.{e}.{n}" for e in EXPERTS for n in "12"}
    row = read_leaderboard(folder).row("best found")
    assert row.recipe is not None
    best = Recipe.from_dict(row.recipe)
    to = folder.with_name("exported")
    assert main(["export", str(folder), "--to", str(to)]) == 0
    if best.layers:  # it is not when equal anchors are the best
        text = " ".join(str(best).split()[-len(EXPERTS) :])
        assert "→" in text
        assert text in (folder / "report.html").read_text(encoding="utf-8")
        assert "from the first to the last of 2 layers" in (to / "README.md").read_text()
        assert load_plain(to / "recipe.yaml")["layers"] == 2


@pytest.mark.slow
def test_a_search_over_decoders_that_is_killed_scores_no_document_twice(
    shared_cache: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "pico.yaml", decoder_values(tmp_path))
    first = Running(spec, tmp_path / "out", shared_cache)
    first.wait_for_blocks(200)
    family = first.family()
    first.process.send_signal(signal.SIGKILL)
    first.wait()
    wait_until_gone(family)
    before = recorded_blocks(tmp_path / "out")
    assert 200 <= len(before) < 6 * DECODER_TRIALS
    last = Running(spec, tmp_path / "out", shared_cache)
    assert last.wait() == 0, last.text()
    assert before <= recorded_blocks(tmp_path / "out"), "what was scored stays as it was written"
    check_complete(tmp_path / "out", DECODER_TRIALS)


def decoder_values(root: Path) -> dict[str, Any]:
    """Make two tuned language models and their data; return the spec of a search over them."""
    base, splits = make_base(root / "base", "llama"), {"items": 24}
    experts, tasks = {}, {}
    kinds = {"choose": "choices-by-likelihood", "read": "language-modeling"}
    with one_thread():
        for seed, (name, kind) in enumerate(kinds.items(), 1):
            experts[name] = str(make_expert(root / name, base, "llama", kind, seed))
            rows = write_data(root / f"{name}.json", kind, seed, 80)
            data = {"dataset": {"json": str(rows)}, "search": splits, "confirm": splits}
            tasks[name] = data | fields_of(kind)
    return {
        "name": "pico",
        "base": str(base),
        "experts": experts,
        "tasks": tasks,
        "space": {"nm": "2:8", "lambda": {"low": 0.0, "high": 1.5, "step": 0.01}},
        "search": {"trials": DECODER_TRIALS, "block": 8, "confirm": 1, "sampler": "random"},
        "device": "cpu",
    }


def recorded_blocks(folder: Path) -> set[tuple[Any, ...]]:
    """Return every row of search scores on record, with its place in the table."""
    with closing(sqlite3.connect(folder / "outcomes" / "outcomes.sqlite")) as db:
        query = "SELECT rowid, recipe, split, task, block FROM blocks WHERE split = 'search'"
        return set(db.execute(query).fetchall())
