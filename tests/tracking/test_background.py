"""Contents of MLflow after a study, the best found as a model, and a tracking server that dies."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
import ray
import yaml
from mlflow import MlflowClient

from cabs_search.cluster.driver import stop_ray
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import Outcomes
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import read_leaderboard
from cabs_search.search.candidates import reference_recipes
from cabs_search.serving.predictor import Served
from cabs_search.spec.load import load, parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from cabs_search.tracking import background, writes
from cabs_search.tracking.background import BackgroundTracker, StudyLog
from cabs_search.tracking.failures import is_unanswered
from cabs_search.tracking.runs import table_bytes
from cabs_search.tracking.server import connect, default_uri
from cabs_search.tracking.study_runs import StudyRuns, find_runs
from cabs_search.workflows.compare import compare
from cabs_search.workflows.run import SearchResult, run
from tests.conftest import EXPERTS, pico_values
from tests.support.records import record_of
from tests.support.served import served
from tests.support.server import Server

TRIALS = 10


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """One Ray for all studies, which they join."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 << 20, **quiet
    )
    yield
    stop_ray()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CABS_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass
class Ran:
    """A study that was run in this process."""

    spec: Spec
    folder: Path
    uri: str | None = None
    said: list[str] = field(default_factory=list)

    def again(self, spec: Spec | None = None) -> SearchResult:
        return run(spec or self.spec, self.folder, tracking_uri=self.uri, say=self.said.append)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri or default_uri(self.folder))

    @property
    def outcomes(self) -> Outcomes:
        return record_of(self.folder)

    def found(self) -> StudyRuns:
        """Find or make the runs, as the writing thread does."""
        study_id = StudyId(self.outcomes.study_id())
        return find_runs(self.folder, self.uri, study_id, self.spec.name, self.spec.name)

    def runs(self) -> tuple[Any, list[Any]]:
        """Return the only parent, and the candidates."""
        client = self.client
        experiment = client.get_experiment_by_name(self.spec.name)
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        (parent,) = (r for r in runs if "mlflow.parentRunId" not in r.data.tags)
        assert {r.data.tags.get("mlflow.parentRunId", parent.info.run_id) for r in runs} == {
            parent.info.run_id
        }
        return parent, [r for r in runs if r is not parent]

    def models(self) -> list[Any]:
        parent, _ = self.runs()
        return list(self.client.search_logged_models([parent.info.experiment_id]))

    def artifact(self, path: str) -> bytes:
        parent, _ = self.runs()
        return Path(self.client.download_artifacts(parent.info.run_id, path)).read_bytes()


@pytest.fixture(scope="module")
def study(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run a study, tracked in its own SQLite file."""
    values = pico_values(pico, trials=TRIALS) | {"tracking": {"model": "auto"}}
    made = Ran(parse(values), tmp_path_factory.mktemp("study") / "out")
    made.again()
    assert not any("MLflow" in line for line in made.said), made.said
    return made


def untracked(study: Ran, folder: Path) -> Ran:
    """Copy a study, without its runs in MLflow."""
    shutil.copytree(study.folder / "outcomes", folder / "outcomes")
    for name in ("study.db", "spec.yaml"):
        shutil.copy(study.folder / name, folder)
    return Ran(study.spec, folder)


def test_the_run_says_what_was_searched_with_what(study: Ran) -> None:
    parent, children = study.runs()
    assert parent.info.status == "FINISHED"
    assert len(children) == TRIALS
    tags = parent.data.tags
    assert tags["state"] == "complete"
    assert tags["methods"] == "task-arithmetic, cabs"
    assert tags["version.mlflow"] == mlflow.__version__
    assert {
        "version.python",
        "version.torch",
        "version.ray",
        "version.optuna",
        "version.transformers",
    } <= tags.keys()
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert tags.get("mlflow.source.git.commit", "") == head
    assert parent.data.params["experts"] == ", ".join(EXPERTS)
    assert load(study.folder / "spec.yaml").as_dict() == yaml.safe_load(study.artifact("spec.yaml"))


def test_its_data_sets_are_the_items_that_were_scored(study: Ran) -> None:
    parent, _ = study.runs()
    items = load_study_items(study.spec)
    inputs = parent.inputs.dataset_inputs
    assert len(inputs) == 2 * len(EXPERTS)
    for found in inputs:
        (split,) = (tag.value for tag in found.tags if tag.key == "mlflow.data.context")
        task = found.dataset.name
        assert found.dataset.digest == items[split][task].digest
        assert json.loads(found.dataset.profile) == {"num_rows": 24}
        assert json.loads(found.dataset.source) == {"uri": study.spec.tasks[task].dataset.csv}


def test_it_says_what_the_leaderboard_says(study: Ran) -> None:
    parent, _ = study.runs()
    board = read_leaderboard(study.folder)
    best = board.chosen
    assert best is not None
    metrics = parent.data.metrics
    assert metrics["confirm.score"] == best.score
    assert (metrics["confirm.low"], metrics["confirm.high"]) == best.simultaneous
    assert metrics["score"] == best.search_score
    assert board.optimism is not None
    assert board.tie_set is not None
    assert metrics["optimism"] == board.optimism.estimate
    assert metrics["tied"] == len(board.tie_set.labels)
    table = json.loads(study.artifact("tables/leaderboard.json"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["row"] for row in rows] == [row.label for row in board.rows]
    for shown, row in zip(rows, board.rows, strict=True):
        assert [shown["confirm"], *(shown[task] for task in EXPERTS)] == pytest.approx(
            [row.score, *(row.tasks[task] for task in EXPERTS)], abs=5e-5
        )
    tests = json.loads(study.artifact("tables/significance.json"))
    said = {
        (row[0], row[1]): dict(zip(tests["columns"], row, strict=True)) for row in tests["data"]
    }
    assert said.keys() == {(row.label, name) for row in board.rows for name in row.against}
    for row in board.rows:
        for name, found in row.against.items():
            assert said[row.label, name]["points"] == pytest.approx(100 * found.estimate, abs=0.005)
            assert said[row.label, name]["p (Holm)"] == pytest.approx(found.p_holm, abs=5e-5)
    listed = {
        each["path"]: each["type"]
        for each in json.loads(parent.data.tags["mlflow.loggedArtifacts"])
    }
    assert listed == {"tables/leaderboard.json": "table", "tables/significance.json": "table"}
    assert study.artifact("leaderboard.txt").decode() == leaderboard_text(board)
    note = parent.data.tags["mlflow.note.content"]
    assert f"cabs-search export {study.folder}" in note
    assert f"| {best.label} | {best.score:.4f} |" in note
    assert note.startswith(f"**{board.verdict}**")
    assert board.tie_set.text in note


def test_candidates_on_the_front_have_a_tag_as_long_as_they_are(study: Ran) -> None:
    keys = sorted(str(child.recipe) for child in study.found().children.values())
    for front in (keys[:2], keys[1:3]):
        writes.write_front(study.found(), front)
        _, candidates = study.runs()
        tags = {run.data.tags["recipe"]: run.data.tags.get("pareto_front") for run in candidates}
        assert {key for key, tag in tags.items() if tag == "true"} == set(front)
    assert tags[keys[0]] == "false"
    writes.write_front(study.found(), [])


def test_pictures_and_the_report_are_artifacts(study: Ran, tmp_path: Path) -> None:
    mine = untracked(study, tmp_path / "out")
    runs = mine.found()
    files = {"pictures/lambda.png": b"\x89PNG", "report.html": b"<html>"}
    for _ in range(2):
        writes.write_files(runs, files)
    assert {path: mine.artifact(path) for path in files} == files


def state_of(study: Ran) -> dict[str, Any]:
    """Return all that MLflow holds of a study."""
    parent, children = study.runs()
    runs = (parent, *children)
    histories = {
        (r.info.run_id, key): [m.value for m in study.client.get_metric_history(r.info.run_id, key)]
        for r in runs
        for key in r.data.metrics
    }
    return {
        "runs": {
            r.info.run_id: (r.data.params, r.data.tags, r.info.status, r.info.end_time)
            for r in runs
        },
        "metrics": histories,
        "data": sorted(i.dataset.digest for i in parent.inputs.dataset_inputs),
        "models": [(m.model_id, m.status) for m in study.models()],
        "tables": [
            study.artifact(f"tables/{name}.json") for name in ("leaderboard", "significance")
        ],
    }


def test_running_a_finished_study_again_leaves_one_of_each(study: Ran) -> None:
    before = state_of(study)
    parent = study.runs()[0].info.run_id
    histories = {
        (parent, "best_score"),
        (parent, "items_spent"),
    }  # a point a candidate, which a line is drawn from
    for of, values in before["metrics"].items():
        assert len(values) == (TRIALS if of in histories else 1), of
    assert len(before["models"]) == 1
    study.again()
    assert state_of(study) == before


def test_the_best_found_loads_in_a_fresh_process_and_says_what_is_on_record(study: Ran) -> None:
    (model,) = study.models()
    assert model.status == "READY"
    assert model.source_run_id == study.runs()[0].info.run_id
    said = served(study.folder, model.model_id)
    assert said.keys() == set(EXPERTS)
    assert all(found == recorded for found, recorded in said.values())


def test_a_logged_model_holds_its_trunk_once(study: Ran) -> None:
    from transformers import AutoModelForSequenceClassification

    (model,) = study.models()
    folder = Path(model.artifact_location.removeprefix("file://"))
    trunks = [path for path in folder.rglob("*.safetensors") if path.stat().st_size > 10_000]
    assert len(trunks) == 1, trunks
    for task in EXPERTS:
        head = folder / "data" / "merged" / "heads" / task
        _, loading = AutoModelForSequenceClassification.from_pretrained(
            head, output_loading_info=True
        )
        assert not any(loading.values()), loading


def test_a_served_model_says_what_it_needs(study: Ran) -> None:
    (model,) = study.models()
    served_model = Served(
        Path(model.artifact_location.removeprefix("file://")) / "data" / "merged", device="cpu"
    )
    rows = pd.DataFrame({"text": ["a good cat"], "label": [1]})
    with pytest.raises(ValueError, match="a task must be one of mood, animal, pair, but got cow"):
        served_model.predict(rows, {"task": "cow"})
    with pytest.raises(ValueError, match="pair: no column first; the data has text, label"):
        served_model.predict(rows, {"task": "pair"})
    with pytest.raises(ValueError, match="mood.text: every text must be a string"):
        served_model.predict(pd.DataFrame({"text": [7]}), {"task": "mood"})
    assert served_model.predict(rows[:0], {"task": "mood"}) == []
    assert served_model.predict(rows) == served_model.predict(rows, {"task": "mood"})
    heads = [served_model.loaded(task)[0] for task in EXPERTS]
    trunks = {model.base_model.encoder.layer[0].output.dense.weight.data_ptr() for model in heads}
    assert len(trunks) == 1, "the trunk is in memory once"


def test_a_model_that_cannot_be_logged_costs_no_result(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    mine = untracked(study, tmp_path / "out")
    monkeypatch.setattr("cabs_search.tracking.models.save_model", full)
    assert mine.again().leaderboard.candidates == TRIALS
    assert [line for line in mine.said if "model (" in line] == [
        "the best found is not in MLflow as a model (no space left on device); cabs-search export"
        " writes it"
    ]
    parent, _ = mine.runs()
    assert parent.info.status == "FINISHED"
    assert mine.models() == [], "nothing is left half done"
    assert "is not logged as a model" not in parent.data.tags["mlflow.note.content"]


def test_more_candidates_change_what_the_run_says(study: Ran, tmp_path: Path) -> None:
    mine = untracked(study, tmp_path / "out")
    client, spec = mine.client, mine.spec
    runs = mine.found()
    old = client.create_logged_model(
        runs.experiment_id, "best-found", runs.parent_id, tags={"recipe": "another"}
    )
    client.log_metric(runs.parent_id, "candidates", 3)
    found = mine.again(spec.override(trials=TRIALS + 4))
    parent, children = mine.runs()
    assert len(children) == TRIALS + 4
    assert parent.data.metrics["candidates"] == TRIALS + 4
    assert parent.data.metrics["score"] == found.leaderboard.chosen.search_score
    (model,) = mine.models()
    assert (model.tags["recipe"], str(model.status)) == (found.best.key, "READY")
    assert model.model_id != old.model_id


def test_rows_of_a_comparison_have_data_and_tables_and_no_model(pico: Path, tmp_path: Path) -> None:
    spec = parse(pico_values(pico, trials=4) | {"baselines": {}})
    compare(spec, ["method=cabs,magnitude"], tmp_path / "out", say=lambda _: None)
    client = MlflowClient(default_uri(tmp_path / "out"))
    (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) >= 2
    for parent in parents:
        assert len(parent.inputs.dataset_inputs) == 2 * len(EXPERTS)
        assert "best found" in parent.data.tags["mlflow.note.content"]
    assert not client.search_logged_models([experiment.experiment_id])


class Written:
    """Stand-in for the runs of a study at a server that may be away."""

    def __init__(self) -> None:
        self.is_away, self.connections, self.candidates = False, 0, list[int]()
        self.refused: set[int] = set()
        self.closed: list[bool] = []
        self.free = threading.Event()
        """Requests wait until it is set."""
        self.free.set()
        self.asked: list[float] = []

    def find_runs(self, *_: object) -> Written:
        self.connections += 1
        self.write()
        return self

    def write(self, *_: object) -> None:
        assert self.free.wait(30)
        self.asked.append(time.monotonic())
        if self.is_away:
            raise ConnectionError("refused\nmore about it")

    def write_candidate(self, finished: Any, _: str) -> None:
        self.write()
        if finished.number in self.refused:
            raise ValueError(f"{finished.number} has a name that is too long")
        self.candidates.append(finished.number)

    def close(self, *, is_complete: bool) -> None:
        self.write()
        self.closed.append(is_complete)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Make all writes of all studies go to a stand-in."""
    made = Written()
    monkeypatch.setattr(background, "find_runs", made.find_runs)
    for name in vars(writes):
        if name.startswith("write_") or name == "merge_doubles":
            monkeypatch.setattr(writes, name, Written.write)
    monkeypatch.setattr(writes, "write_candidate", Written.write_candidate)
    monkeypatch.setattr(writes, "close", Written.close)
    return made


@contextmanager
def tracking(
    study: Ran, folder: Path, uri: str = "http://server"
) -> Iterator[tuple[StudyLog, list[str]]]:
    """Track a study in the background; yield its log and what is said."""
    said: list[str] = []
    with BackgroundTracker(folder, uri, said.append) as tracker:
        log = tracker.study(study.spec)
        log.open(study.outcomes, StudyId("id"))
        yield log, said


def candidate(study: Ran, number: int) -> Any:
    """Make a finished candidate, with as much as the stand-in reads."""
    (recipe,) = list(reference_recipes(study.spec.experts).values())[-1:]
    return SimpleNamespace(number=number, recipe=recipe)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_server_misses_is_written_in_order_once_it_is_back(
    study: Ran, tmp_path: Path, stand_in: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 1.0)
    with tracking(study, tmp_path) as (log, said):
        log.candidate(candidate(study, 0))
        wait_until(lambda: stand_in.candidates == [0])
        stand_in.is_away, begin = True, len(stand_in.asked)
        for number in (1, 2, 3):
            log.candidate(candidate(study, number))
        wait_until(lambda: len(said) == 1)
        assert stand_in.candidates == [0]
        assert "refused" in said[0]
        assert "more about it" not in said[0]
        wait_until(lambda: len(stand_in.asked) == begin + 3)
        stand_in.is_away = False
        log.candidate(candidate(study, 4))
        wait_until(lambda: len(said) == 2)
        assert stand_in.candidates == [0, 1, 2, 3, 4]
        assert "answers again" in said[1]
        first, second, third, last = stand_in.asked[begin : begin + 4]
        assert min(second - first, third - second, last - third) > 0.9, "it is not asked too often"
    assert len(said) == 2


def test_the_end_of_a_study_tries_once_more(study: Ran, tmp_path: Path, stand_in: Written) -> None:
    with tracking(study, tmp_path) as (log, said):
        wait_until(lambda: len(stand_in.asked) > 4)
        stand_in.is_away = True
        log.candidate(candidate(study, 1))
        wait_until(lambda: len(said) == 1)
        stand_in.is_away = False
        log.close()
        end = time.monotonic()
    assert time.monotonic() - end < background.RETRY_SECONDS / 2
    assert stand_in.candidates == [1]
    assert len(said) == 2


def test_what_is_refused_keeps_nothing_else_waiting(
    study: Ran, tmp_path: Path, stand_in: Written
) -> None:
    stand_in.refused = {1, 3}
    with tracking(study, tmp_path) as (log, said):
        for number in range(5):
            log.candidate(candidate(study, number))
    assert stand_in.candidates == [0, 2, 4]
    assert stand_in.connections == 1
    (line,) = said
    assert (
        line
        == "MLflow at http://server does not take a candidate (1 has a name that is too long); all"
        " else is written"
    )


class Clock:
    """Stand-in for ``time``, moved on by requests."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_server_that_swallows_requests_costs_little_in_all(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every try costs ten seconds, and forty studies end."""
    clock = Clock()

    def swallow(*_: object) -> None:
        clock.now += 10
        raise TimeoutError("no answer")

    said: list[str] = []
    monkeypatch.setattr(background, "time", clock)
    monkeypatch.setattr(background, "find_runs", swallow)
    with BackgroundTracker(tmp_path, "http://me:secret@server", said.append) as tracker:
        logs = [tracker.study(study.spec) for _ in range(40)]
        for log in logs:
            log.open(study.outcomes, StudyId("id"))
            log.candidate(candidate(study, 0))
            log.close()
    assert 10 < clock.now < 50
    (line,) = said
    assert "MLflow at http://server cannot be written (no answer)" in line


def test_a_slow_server_is_not_waited_for_longer_than_a_while(
    study: Ran, tmp_path: Path, stand_in: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def slow(runs: Written, finished: Any, _: str) -> None:
        clock.now += 7
        runs.candidates.append(finished.number)

    monkeypatch.setattr(writes, "write_candidate", slow)
    monkeypatch.setattr(background, "time", clock)
    stand_in.free.clear()
    with tracking(study, tmp_path) as (log, said):
        for number in range(100):
            log.candidate(candidate(study, number))
        threading.Timer(0.5, stand_in.free.set).start()
    assert 60 <= clock.now < 70
    assert stand_in.candidates == list(range(len(stand_in.candidates)))
    assert said == [
        "MLflow at http://server is slow; what is not written yet follows with the next run on"
        f" {tmp_path}"
    ]


@pytest.mark.parametrize(
    ("status", "is_outage"),
    [(400, False), (403, False), (404, False), (429, True), (500, True), (502, True)],
)
@pytest.mark.parametrize("body", [b"<html>", b'{"error_code": "%s", "message": "m"}'])
def test_what_is_an_outage_and_what_a_refusal(status: int, is_outage: bool, body: bytes) -> None:
    codes = {
        400: "INVALID_PARAMETER_VALUE",
        403: "PERMISSION_DENIED",
        404: "RESOURCE_DOES_NOT_EXIST",
    }
    codes |= {429: "REQUEST_LIMIT_EXCEEDED", 500: "INTERNAL_ERROR", 502: "TEMPORARILY_UNAVAILABLE"}
    with (
        answering(status, body.replace(b"%s", codes[status].encode())) as (uri, _),
        pytest.raises(Exception) as raised,
    ):
        connect(uri).create_run("0")
    assert is_unanswered(raised.value) is is_outage
    assert is_unanswered(raised.value, refusals=(500,)) is (is_outage and status != 500)


def test_a_run_whose_making_times_out_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request would double a run that the server has made."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with answering(None) as (uri, asked), pytest.raises(Exception, match="timed out") as raised:
        connect(uri).create_run("0")
    assert is_unanswered(raised.value)
    assert len(asked) == 1


@contextmanager
def answering(status: int | None, body: bytes = b"") -> Iterator[tuple[str, list[str]]]:
    """Serve one answer to all requests, or none in time; yield the address and the requests."""
    asked, over = list[str](), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            if status is None:
                over.wait(30)
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        over.set()
        server.shutdown()


def test_artifacts_that_cannot_be_kept_take_nothing_with_them(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client without the bucket's credentials is such a case; a model too large is not tried."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to locate credentials")

    for name in ("log_text", "log_inputs", "log_artifacts", "set_experiment_tag"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    mine = untracked(study, tmp_path / "out")
    monkeypatch.setattr("cabs_search.workflows.findings.MOST_MODEL_BYTES", 10)
    assert mine.again().leaderboard.candidates == TRIALS
    assert mine.models() == []
    parent, children = mine.runs()
    assert (parent.info.status, len(children)) == ("FINISHED", TRIALS)
    assert parent.data.metrics == study.runs()[0].data.metrics
    assert "| best found |" in parent.data.tags["mlflow.note.content"]
    assert "is not logged as a model unasked" in parent.data.tags["mlflow.note.content"]
    said = [
        line.partition("does not take ")[2].partition(" (")[0]
        for line in mine.said
        if "does not take" in line
    ]
    assert sorted(said) == ["artifacts", "data sets", "saved views"]


def test_an_outage_while_the_model_is_logged_is_tried_again(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise ConnectionError("gone")

    mine = untracked(study, tmp_path / "out")
    after(1, away, MlflowClient, "log_model_artifacts", monkeypatch)
    mine.again()
    (model,) = mine.models()
    assert str(model.status) == "READY"
    assert mine.runs()[0].info.status == "FINISHED"
    assert not any("as a model" in line for line in mine.said)
    assert [
        word in line for line, word in zip(mine.said[-2:], ("gone", "answers again"), strict=True)
    ] == [True, True]


def test_runs_that_are_there_twice_become_one(study: Ran, tmp_path: Path) -> None:
    """A server that makes a run too slowly to say so leaves such doubles."""
    mine = Ran(study.spec, tmp_path / "out")
    shutil.copytree(study.folder, mine.folder)
    before = candidates_of(mine)
    client, (parent, children) = mine.client, mine.runs()
    experiment = parent.info.experiment_id
    tags = {"cabs_search.study": parent.data.tags["cabs_search.study"]}
    first = client.create_run(experiment, start_time=parent.info.start_time - 1, tags=tags)
    for child in children[:3]:  # what was begun earlier, and is not whole
        again = {
            name: child.data.tags[name]
            for name in ("cabs_search.trial", "mlflow.parentRunId", "recipe")
        }
        client.create_run(experiment, start_time=child.info.start_time - 1, tags=again)
    writes.merge_doubles(mine.found())
    assert mine.runs()[0].info.run_id == first.info.run_id
    assert candidates_of(mine) == before
    assert {run.info.run_id for run in mine.runs()[1]} == {run.info.run_id for run in children}


def test_an_experiment_that_was_deleted_comes_back(tmp_path: Path, study: Ran) -> None:
    mine = untracked(study, tmp_path / "out")
    client, runs = mine.client, mine.found()
    client.delete_experiment(runs.experiment_id)
    again = mine.found()
    assert again.parent_id == runs.parent_id
    assert client.get_experiment(again.experiment_id).lifecycle_stage == "active"


def test_a_table_has_no_number_that_json_does_not_know() -> None:
    rows = [{"row": "a", "search": float("nan"), "p": float("inf"), "wins": 3}]
    table = json.loads(table_bytes(rows), parse_constant=pytest.fail)
    assert table["data"] == [["a", None, None, 3]]


def test_an_interrupted_search_does_not_wait_for_mlflow(
    study: Ran, tmp_path: Path, stand_in: Written
) -> None:
    """Writes are left to the next run, except that the study's run is closed."""
    stand_in.free.clear()
    with pytest.raises(KeyboardInterrupt), tracking(study, tmp_path) as (log, _):
        log.candidate(candidate(study, 1))
        log.close()
        threading.Timer(0.5, stand_in.free.set).start()
        raise KeyboardInterrupt
    assert (stand_in.candidates, stand_in.closed) == ([], [False])


def test_secrets_of_an_address_are_not_said(
    study: Ran, tmp_path: Path, stand_in: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's name has them, and errors quote it."""

    def refuse(*_: object) -> None:
        raise ValueError("http://me:pass@server?token=abc/api/2.0: 400 of /?token=abc/api/2.0")

    monkeypatch.setattr(writes, "write_candidate", refuse)
    with tracking(study, tmp_path, "http://me:pass@server?token=abc") as (log, said):
        log.candidate(candidate(study, 0))
    (line,) = said
    assert "MLflow at http://server?token=*** does not take a candidate (http://server" in line
    assert "abc" not in line
    assert "pass" not in line
    assert "abc" not in (tmp_path / "tracking-uri.txt").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


def after(
    count: int, act: Callable[[], object], of: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patch a method or function so that ``act`` runs just before its call number ``count``."""
    plain, calls = getattr(of, name), iter(range(1, 10**9))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            act()
        return plain(*arguments, **options)

    monkeypatch.setattr(of, name, counted)


def candidates_of(study: Ran) -> dict[str, Any]:
    """Return the contents of every candidate's run, by its number, which no two share."""
    _, children = study.runs()
    found = {
        r.data.tags["cabs_search.trial"]: (
            r.data.params,
            r.data.metrics,
            r.data.tags["recipe"],
            r.info.status,
        )
        for r in children
    }
    assert len(found) == len(children)
    return found


@pytest.mark.slow
def test_a_server_that_dies_costs_no_result(
    server: Server, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice in a search: once it comes back before the end, once not until the next run."""
    server.start()
    values = pico_values(pico, trials=TRIALS) | {"tracking": {"model": "auto"}}
    died = threading.Event()

    def die() -> None:
        server.kill()
        died.set()

    def come_back() -> None:
        assert died.wait(120)
        server.start()

    for name, is_back in (("back", True), ("gone", False)):
        mine = Ran(parse(values | {"name": name}), tmp_path / name, server.uri)
        with monkeypatch.context() as patch:
            after(4, die, writes, "write_candidate", patch)
            if is_back:
                after(1, come_back, StudyLog, "end", patch)
            board = mine.again().leaderboard
        assert board.candidates == TRIALS
        assert board.row("best found").search_score is not None
        lines = [line for line in mine.said if server.uri in line]
        assert ["cannot be written" in line for line in lines] == [True, False][: len(lines)]
        assert len(lines) == (2 if is_back else 1), lines
        if not is_back:
            server.start()
            assert mine.again().scored_items == 0
        clean = Ran(mine.spec, mine.folder)
        clean.again()
        assert len(candidates_of(clean)) == TRIALS
        assert candidates_of(mine) == candidates_of(clean)
        ours, theirs = mine.runs()[0], clean.runs()[0]
        assert ours.data.metrics == theirs.data.metrics
        assert ours.data.tags["mlflow.note.content"] == theirs.data.tags["mlflow.note.content"]
        assert [model.status for model in mine.models()] == ["READY"]
        assert mine.artifact("tables/leaderboard.json") == clean.artifact("tables/leaderboard.json")
