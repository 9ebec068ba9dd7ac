"""A study and its runs on a PostgreSQL server, which goes away; its password, which is nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from cabs_search.record.folder import write_spec
from cabs_search.search import patience
from cabs_search.spec.load import load, parse
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values
from tests.conftest import write_spec as write_yaml
from tests.support import postgres
from tests.support.bench import Bench
from tests.support.postgres import PASSWORD, Postgres

pytestmark = pytest.mark.skipif(bool(postgres.lacking()), reason=postgres.lacking())


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    made = Postgres()
    try:
        made.start()
        yield made
    finally:
        made.remove()


def states(bench: Bench) -> list[str]:
    return [trial.state.name for trial in bench.study._database.trials()]


@pytest.mark.slow
def test_a_server_that_starts_again_costs_nothing(
    server: Postgres, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write finds a dead server, which is back a moment later."""
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.1)
    monkeypatch.setenv("CABS_SEARCH_STORAGE", server.url)
    spec = parse(pico_values(pico) | {"name": "restarted"})
    bench = Bench(spec, tmp_path, load_study_items(spec))
    storage: Any = bench.study._database._storage
    for at in ("create_new_trial", "set_trial_user_attr", "set_trial_state_values"):
        act, calls = getattr(storage, at), iter(range(1000))

        def cut(*given: Any, act: Any = act, calls: Any = calls, **named: Any) -> Any:
            number = next(calls)
            if number == 2:  # before the write
                server.kill()
                Timer(0.5, server.start).start()
            found = act(*given, **named)
            if number == 4:  # after it, and its answer is lost
                storage.engine.dispose()
                raise patience.OperationalError("lost", None, Exception("lost"))
            return found

        monkeypatch.setattr(storage, at, cut)
    with bench.study.connected():
        bench.run()
        assert bench.study.is_finished
        assert states(bench) == ["COMPLETE"] * 10
    assert len(bench.scored) == len(set(bench.scored))


def test_a_server_that_stays_away_ends_the_run_in_one_line(
    server: Postgres, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.5)
    spec = parse(pico_values(pico, storage=server.url) | {"name": "away"})
    items = load_study_items(spec)
    bench = Bench(spec, tmp_path, items)
    with bench.study.connected():
        bench.run(blocks=10)
        server.kill()
        with pytest.raises(RuntimeError, match="same command goes on where it stopped") as raised:
            bench.run()
    assert "does not answer" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(RuntimeError, match="does not answer"):
        Bench(spec, tmp_path, items)
    server.start()
    last = Bench(spec, tmp_path, items)
    with last.study.connected():
        last.run()
        assert states(last) == ["COMPLETE"] * 10
    assert not set(bench.scored) & set(last.scored)
    write_spec(spec, tmp_path)
    assert PASSWORD not in (tmp_path / "spec.yaml").read_text() + repr(spec) + str(raised.value)
    assert "127.0.0.1" in str(load(tmp_path / "spec.yaml").search.storage)


@pytest.mark.slow
def test_a_search_on_a_server_tells_nobody_its_password(
    server: Postgres, pico: Path, tmp_path: Path
) -> None:
    """All that runs, a page and an export write and print, Ray's logs and MLflow's tables."""
    out, away = tmp_path / "out", server.tracking_url.replace("@127", "@256")
    short = tempfile.mkdtemp(prefix="r-")  # Ray's sockets must have short names
    spec = write_yaml(tmp_path / "pico.yaml", pico_values(pico, storage=server.url, trials=4))
    environment = os.environ | {
        "CABS_SEARCH_CACHE": str(tmp_path / "cache"),
        "CABS_SEARCH_STORAGE": server.url,
        "CABS_SEARCH_TRACKING_URI": server.tracking_url,
        "RAY_TMPDIR": short,
    }
    printed = ""
    for status, *arguments in (
        (2, "run", spec, "--output", out, "--tracking-uri", server.url),
        (0, "run", spec, "--output", out),
        (0, "run", spec, "--output", out, "--tracking-uri", away),
        (0, "report", out),
        (0, "export", out, "--trial", "3", "--to", tmp_path / "merged"),
    ):
        found = subprocess.run(
            [sys.executable, "-m", "cabs_search.cli", *map(str, arguments)],
            env=environment, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert found.returncode == status, found.stderr[-3000:]
        printed += found.stdout + found.stderr
    assert "must be a database of its own" in printed
    assert "MLflow at postgresql+psycopg://256.0.0.1" in printed
    spec.unlink()
    files = [path for path in (*tmp_path.rglob("*"), *Path(short).rglob("*")) if path.is_file()]
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    shutil.rmtree(short)
    assert {out / "tracking-uri.txt", out / "spec.yaml"} <= set(files)
    assert not (out / "study.db").exists()
    assert not (out / "mlflow.db").exists()
    tables = server.dump()
    assert b"best_score" in tables
    assert b"materialize_seconds" in tables
    assert PASSWORD not in printed
    assert PASSWORD.encode() not in tables
