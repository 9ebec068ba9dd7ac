"""Whole runs of the command line on pico models: leaderboard, MLflow, export, kill -9."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from cabs_search.cli.main import main
from cabs_search.record.folder import StudyId
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import Leaderboard, read_leaderboard
from cabs_search.scoring.forward import evaluate
from cabs_search.spec.load import load, parse
from cabs_search.tasks.load import load_study_items
from cabs_search.tracking.server import default_uri, ui_links
from cabs_search.tracking.summary import summary_of
from cabs_search.workflows.compare import compare
from cabs_search.workflows.run import SearchResult, run
from tests.conftest import EXPERTS, pico_values, write_spec
from tests.support.records import record_of

COMMAND = [sys.executable, "-m", "cabs_search.cli"]
HEAVY = ("torch", "transformers", "ray", "optuna", "mlflow", "pandas", "matplotlib")


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"CABS_SEARCH_CACHE": str(cache)}


def call(*arguments: object, cache: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == status, found.stderr[-3000:]
    return found


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def study(pico: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a study, and return its folder, with ``stdout`` and ``stderr`` in it."""
    root = tmp_path_factory.mktemp("study")
    spec = write_spec(root / "pico.yaml", pico_values(pico))
    found = call("run", spec, "--output", root / "out", cache=shared_cache)
    (root / "out" / "stdout").write_text(found.stdout)
    (root / "out" / "stderr").write_text(found.stderr)
    return root / "out"


def children(folder: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pico")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    return [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(
        study_name="pico", storage=f"sqlite:///{folder / 'study.db'}"
    ).get_trials()


def check_complete(folder: Path, budget: int) -> None:
    """Check what holds for any finished study, whatever happened on the way."""
    outcomes = record_of(folder)
    searched = outcomes.scored("search")
    assert len(searched) == budget
    with closing(sqlite3.connect(outcomes.path)) as db:
        rows = db.execute("SELECT recipe, split, task, block FROM blocks").fetchall()
    assert len(rows) == len(set(rows))
    assert Counter(t.state.name for t in trials(folder)).keys() <= {"COMPLETE", "FAIL"}, (
        "no trial runs or waits"
    )
    told = [t for t in trials(folder) if t.state.name == "COMPLETE"]
    assert len(told) == budget
    runs = children(folder)
    assert len(runs) == budget
    assert len({r.data.tags["cabs_search.trial"] for r in runs}) == budget
    assert {r.data.tags["recipe"] for r in runs} == searched.keys()
    assert {(r.info.status, r.data.tags["state"]) for r in runs} == {("FINISHED", "complete")}
    best = max(s.score for s in searched.values())
    check_progress(folder, [s.items for s in searched.values()], best)
    assert max(t.value for t in told if t.value is not None) == best
    assert read_leaderboard(folder).row("best found").search_score == best
    assert max(r.data.metrics["score"] for r in runs) == pytest.approx(best)


def check_progress(folder: Path, items: list[int], best: float) -> None:
    """Check that the curve of the best score has each candidate once, in order of completion."""
    from mlflow import MlflowClient

    runs = children(folder)
    assert sorted(map(_spent, runs)) == list(itertools.accumulate(items))
    ends = [run.info.end_time for run in sorted(runs, key=_spent)]
    assert ends == sorted(ends)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    parent = runs[0].data.tags["mlflow.parentRunId"]
    points = sorted((m.step, m.value) for m in client.get_metric_history(parent, "best_score"))
    assert [step for step, _ in points] == sorted(map(_spent, runs))
    so_far = itertools.accumulate((r.data.metrics["score"] for r in sorted(runs, key=_spent)), max)
    assert [value for _, value in points] == pytest.approx(list(so_far))
    assert points[-1][1] == pytest.approx(best)


def _spent(run: Any) -> float:
    return float(run.data.metrics["items_spent"])


def test_a_run_ends_with_a_leaderboard(study: Path) -> None:
    check_complete(study, 10)
    stdout, stderr = (study / "stdout").read_text(), (study / "stderr").read_text()
    for label in (
        "base",
        *(f"expert {e}" for e in EXPERTS),
        "ideal",
        "best shared-λ task-arithmetic",
        "best shared-λ cabs",
    ):
        assert f"\n{label} " in stdout
    assert "best found" in stdout
    assert any(
        words in stdout
        for words in ("cannot be told from", "beats", "is worse than", "Nothing searched")
    )
    assert f"cabs-search ui {study}" in stdout
    assert "10/10" in stderr
    assert "Traceback" not in stderr
    assert "Warning" not in stderr


def test_report_prints_the_same_again(study: Path, shared_cache: Path) -> None:
    text = call("report", study, cache=shared_cache).stdout
    assert text.strip() in (study / "stdout").read_text()
    assert f"Open the report:   {study / 'report.html'}" in text
    assert "<h1>" in (study / "report.html").read_text(encoding="utf-8")
    board = json.loads(call("report", study, "--json", cache=shared_cache).stdout)
    assert board["candidates"] == 10
    assert [row["label"] for row in board["rows"]][:5] == [
        "base",
        *(f"expert {e}" for e in EXPERTS),
        "ideal",
    ]
    for row in board["rows"]:
        assert row["score"] == pytest.approx(np.mean(list(row["tasks"].values())))
        assert row["interval"][0] <= row["score"] <= row["interval"][1]
        assert (
            row["simultaneous"][0]
            <= row["interval"][0]
            <= row["interval"][1]
            <= row["simultaneous"][1]
        )
    ideal, experts = board["rows"][4], board["rows"][1:4]
    assert ideal["tasks"] == {e: row["tasks"][e] for e, row in zip(EXPERTS, experts, strict=True)}


def test_mlflow_children_hold_what_a_candidate_is_and_did(study: Path) -> None:
    scored = record_of(study).scored("search")
    for child in children(study):
        candidate = scored[child.data.tags["recipe"]]
        params = child.data.params
        assert params["method"] == candidate.recipe.method.name
        assert {e: float(params[f"lambda.{e}"]) for e in EXPERTS} == candidate.recipe.lambda_by_name
        if params["method"] == "cabs":
            assert params["order"].split(">") == sorted(
                EXPERTS, key=lambda e: int(params[f"rank.{e}"])
            )
            assert params["nm"] in ("2:8", "8:32")
        metrics = child.data.metrics
        assert metrics["score"] == pytest.approx(candidate.score)
        assert metrics["items"] == 72
        assert {f"score.{e}" for e in EXPERTS} | {f"loss.{e}" for e in EXPERTS} <= metrics.keys()
        assert metrics["evaluate_seconds"] > 0
        assert metrics["materialize_seconds"] > 0


def test_ui_knows_every_saved_view(study: Path) -> None:
    found = ui_links(
        default_uri(study),
        "http://x",
        "pico",
        StudyId(record_of(study).study_id()),
        is_comparison=False,
    )
    names = [name.removesuffix(" of pico") for name in found]
    assert names == [
        "all runs",
        "Candidates",
        "λ landscape, cabs",
        "Orders compared",
        "Parallel coordinates",
        "Best score against items spent",
        "Per-task trade-off",
    ]


def test_run_again_on_a_finished_study_scores_nothing(
    study: Path, pico: Path, shared_cache: Path, tmp_path: Path
) -> None:
    before = record_of(study).path.stat().st_size
    spec = write_spec(tmp_path / "pico.yaml", pico_values(pico))
    found = call("run", spec, "--output", study, "--json", cache=shared_cache)
    assert json.loads(found.stdout)["candidates"] == 10
    assert record_of(study).path.stat().st_size == before
    check_complete(study, 10)


def test_an_export_scores_exactly_what_the_leaderboard_said(
    study: Path, shared_cache: Path, tmp_path: Path
) -> None:
    call("export", study, "--to", tmp_path / "best", cache=shared_cache)
    spec = load(study / "spec.yaml")
    items = load_study_items(spec)["confirm"]
    row = read_leaderboard(study).chosen
    assert row is not None
    recorded = record_of(study).scored("confirm")[str(row.key)]
    trunks = set()
    for task in EXPERTS:
        model = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "best" / "heads" / task
        ).eval()
        found = evaluate(model, items[task], np.arange(len(items[task])), torch.device("cpu"))
        metric = spec.tasks[task].measure.compute(found.predictions, items[task].labels)
        assert metric == row.tasks[task]
        assert found.predictions.tolist() == recorded.tasks[task].predictions.tolist()
        assert found.losses == pytest.approx(recorded.tasks[task].losses, abs=1e-5)
        trunks.add(
            (tmp_path / "best" / "heads" / task / "model-00001-of-00002.safetensors").stat().st_ino
        )
    assert len(trunks) == 1, "the trunk is on disk once for all heads"
    AutoModel.from_pretrained(tmp_path / "best")
    assert json.loads((tmp_path / "best" / "recipe.json").read_text()) == row.recipe
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"{row.score:.4f}" in card
    command = card.split("```")[1].replace("\\\n", " ").split()[1:]
    places = {"recipe.json": tmp_path / "best" / "recipe.json", "base": spec.base}
    places |= {f"{e}={e}": f"{e}={at}" for e, at in spec.experts.items()}
    places |= {"PATH": tmp_path / "again"}
    call(*(places.get(word, word) for word in command), cache=shared_cache)
    same = [(tmp_path / made / "model.safetensors").read_bytes() for made in ("best", "again")]
    assert same[0] == same[1]
    arguments = ["merge", "--recipe", tmp_path / "best" / "recipe.yaml", "--to", tmp_path / "yaml"]
    assert main([str(argument) for argument in arguments]) == 0
    for file in (tmp_path / "best").rglob("*"):
        if file.suffix in (".safetensors", ".json", ".yaml"):
            other = tmp_path / "yaml" / file.relative_to(tmp_path / "best")
            assert other.read_bytes() == file.read_bytes(), file


def test_a_report_needs_neither_experts_nor_data(study: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study, tmp_path / "copy")
    text = (copy / "spec.yaml").read_text()
    (copy / "spec.yaml").write_text(
        text.replace(str(load(study / "spec.yaml").base), "/gone/base").replace(".csv", ".gone")
    )
    assert read_leaderboard(copy) == read_leaderboard(study)


def test_reading_a_leaderboard_loads_no_torch(study: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from cabs_search.results.leaderboard import read_leaderboard
assert read_leaderboard(Path({str(study)!r})).rows
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_loads_in_the_dtype_it_was_scored_in(
    pico: Path, shared_cache: Path, tmp_path: Path, dtype: str
) -> None:
    """Experts in half precision, whatever the study's dtype."""
    halves = {}
    for name in EXPERTS:
        halves[name] = shutil.copytree(pico / name, tmp_path / name)
        AutoModelForSequenceClassification.from_pretrained(
            pico / name, dtype=torch.float16
        ).save_pretrained(halves[name])
    values = pico_values(pico, trials=4) | {
        "experts": {n: str(p) for n, p in halves.items()},
        "dtype": dtype,
    }
    call(
        "run",
        write_spec(tmp_path / "s.yaml", values),
        "--output",
        tmp_path / "out",
        cache=shared_cache,
    )
    call("export", tmp_path / "out", "--to", tmp_path / "best", cache=shared_cache)
    items, row = (
        load_study_items(load(tmp_path / "out" / "spec.yaml"))["confirm"],
        read_leaderboard(tmp_path / "out").chosen,
    )
    assert row is not None
    for task in EXPERTS:
        model = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "best" / "heads" / task
        ).eval()
        assert str(model.dtype) == f"torch.{dtype}"
        found = evaluate(model, items[task], np.arange(len(items[task])), torch.device("cpu"))
        assert float(found.scores.mean()) == pytest.approx(row.tasks[task])


def test_any_candidate_can_be_exported_by_its_number(
    study: Path, shared_cache: Path, tmp_path: Path
) -> None:
    found = json.loads(
        call(
            "export", study, "--trial", 1, "--to", tmp_path / "x", "--json", cache=shared_cache
        ).stdout
    )
    assert found["recipe"]["method"] == "task-arithmetic"
    assert found["recipe"]["lambda"] == dict.fromkeys(EXPERTS, 1.0)


def test_merge_by_command_equals_merge_in_python(
    pico: Path, shared_cache: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from cabs_search import merge

    experts = {e: pico / e for e in EXPERTS}
    arguments = [part for e, path in experts.items() for part in ("--expert", f"{e}={path}")]
    call(
        "merge", "--base", pico / "base", *arguments, "--nm", "2:8", "--order", "pair,mood,animal",
        "--lambda", "mood=1.5", "--to", tmp_path / "m", cache=shared_cache,
    )  # fmt: skip
    expected = merge(
        pico / "base",
        experts,
        {"mood": 1.5, "animal": 1.0, "pair": 1.0},
        nm=(2, 8),
        order=["pair", "mood", "animal"],
    )
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ui_serves_the_studys_runs(study: Path, shared_cache: Path) -> None:
    port = random.randint(20000, 40000)
    process = subprocess.Popen(
        [*COMMAND, "ui", str(study), "--port", str(port)],
        env=environment(shared_cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        runs, candidates = (process.stdout.readline().split("  ", 1) for _ in range(2))
        assert runs[0] == "all runs"
        assert runs[1].strip().startswith(f"http://127.0.0.1:{port}/#/experiments/")
        assert candidates[0] == "Candidates of pico"
        assert "viewStateShareKey=cabs-candidates-" in candidates[1]
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert b"MLflow" in page.read()
                    break
            except OSError:
                assert time.monotonic() < deadline, "MLflow's UI did not answer"
                time.sleep(0.5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_folder_of_another_study_is_refused(
    study: Path, pico: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path / "pico.yaml", pico_values(pico) | {"seed": 7})
    before = (study / "spec.yaml").read_bytes()
    assert main(["run", str(spec), "--output", str(study)]) == 2
    assert "holds another study" in capsys.readouterr().err
    assert (study / "spec.yaml").read_bytes() == before


def status_of_parent(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "mlflow.db")) as db:
        ((status,),) = db.execute("SELECT status FROM runs WHERE name = 'pico'")
    return str(status)


def broken(*_: object, **__: object) -> None:
    raise OSError("no space left")


def run_again(
    study: Path, to: Path, cache: Path, patch: pytest.MonkeyPatch, say: Any
) -> SearchResult:
    """Run on a copy of a finished study, which starts no workers."""
    patch.setenv("CABS_SEARCH_CACHE", str(cache))
    patch.setattr("cabs_search.cluster.driver.search", lambda *_, **__: None)
    return run(load(study / "spec.yaml"), shutil.copytree(study, to), say=say)


def test_a_page_and_pictures_that_fail_cost_no_result(
    study: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cabs_search.reporting.html.page.render", broken)
    monkeypatch.setattr("cabs_search.workflows.findings.pictures", broken)
    said = list[str]()
    found = run_again(study, tmp_path / "copy", shared_cache, monkeypatch, said.append)
    assert found.leaderboard == read_leaderboard(study)
    assert [text for text in said if "no space left" in text] == [
        f"{tmp_path / 'copy' / 'report.html'} could not be written: no space left",
        "the charts could not be drawn as pictures: no space left",
    ]
    assert status_of_parent(tmp_path / "copy") == "FINISHED"


def test_an_error_behind_the_search_closes_the_parent(
    study: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cabs_search.workflows.findings.summary_of", broken)
    with pytest.raises(OSError, match="no space left"):
        run_again(study, tmp_path / "copy", shared_cache, monkeypatch, lambda _: None)
    assert status_of_parent(tmp_path / "copy") == "KILLED"


def test_report_prints_the_leaderboard_where_the_page_cannot_be_written(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cabs_search.reporting.html.page.render", broken)
    assert main(["report", str(study)]) == 1
    out, err = capsys.readouterr()
    assert out.strip() == leaderboard_text(read_leaderboard(study))
    assert (
        err.strip() == f"cabs-search: {study / 'report.html'} could not be written: no space left"
    )
    assert main(["report", str(study), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["candidates"] == 10


def test_a_study_records_what_searched_it(study: Path) -> None:
    (found,) = json.loads((study / "versions.json").read_text())
    assert found["Python"] == platform.python_version()
    assert {"torch", "optuna", "mlflow"} <= found.keys()


def test_one_row_that_mlflow_is_not_told_of_ends_no_other(
    pico: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(shared_cache))
    told = summary_of

    def for_all_but_one(board: Leaderboard, *rest: Any) -> Any:
        return broken() if "mood>animal>pair" in board.name else told(board, *rest)

    monkeypatch.setattr("cabs_search.workflows.findings.summary_of", for_all_but_one)
    monkeypatch.setattr("cabs_search.reporting.html.page.render", broken)
    said, axis = list[str](), "order=mood>animal>pair,pair>animal>mood"
    values = pico_values(pico, trials=2)
    values["space"] |= {"nm": ["2:8"]}
    found = compare(parse(values), [axis], tmp_path / "out", say=said.append)
    rows = {line.label: line for line in found.lines}
    assert all(rows[order].row is not None for order in ("mood>animal>pair", "pair>animal>mood"))
    assert (
        sum(
            "mood>animal>pair: what it found is not in MLflow: no space left" in text
            for text in said
        )
        == 1
    )
    assert sum("report.html could not be written" in text for text in said) == 1
    with closing(sqlite3.connect(tmp_path / "out" / "mlflow.db")) as db:
        states = dict(db.execute("SELECT name, status FROM runs WHERE name LIKE 'pico %'"))
    assert states.pop("pico mood>animal>pair") == "KILLED"
    assert set(states.values()) == {"FINISHED"}
    assert (tmp_path / "out" / "versions.json").is_file()
