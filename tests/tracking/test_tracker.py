"""What MLflow holds of a study, the best found as a model, and a tracking server that dies."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import ray
import yaml
from mlflow import MlflowClient

from cabs_search.cluster.driver import stop_ray
from cabs_search.record.outcomes import Outcomes
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import read_leaderboard
from cabs_search.serving.predictor import Served
from cabs_search.spec.load import load, parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from cabs_search.tracking.background import BackgroundTracker, StudyLog
from cabs_search.tracking.failures import is_unanswered
from cabs_search.tracking.server import default_uri
from cabs_search.tracking.summary import Summary
from cabs_search.tracking.tracker import Tracker
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

    def runs(self) -> tuple[Any, list[Any]]:
        """The parent, as it is alone, and the candidates."""
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
    """A finished study, tracked in its own SQLite file."""
    values = pico_values(pico, trials=TRIALS) | {"tracking": {"model": "auto"}}
    made = Ran(parse(values), tmp_path_factory.mktemp("study") / "out")
    made.again()
    assert not any("MLflow" in line for line in made.said), made.said
    return made


def untracked(study: Ran, folder: Path) -> Ran:
    """The same study elsewhere, of which MLflow knows nothing yet."""
    shutil.copytree(study.folder / "outcomes", folder / "outcomes")
    shutil.copy(study.folder / "study.db", folder)
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
    best = board.row("best found")
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
    assert f"| best found | {best.score:.4f} |" in note
    assert note.startswith(f"**{board.verdict}**")
    assert board.tie_set.text in note


def test_pictures_and_the_report_are_artifacts(study: Ran, tmp_path: Path) -> None:
    mine = Ran(study.spec, tmp_path)
    tracker = Tracker(mine.spec, mine.folder, "id")
    files = {"pictures/lambda.png": b"\x89PNG", "report.html": b"<html>"}
    for _ in range(2):
        tracker.finished({}, Summary(metrics={}, note="", tables={}, files=files))
    assert {path: mine.artifact(path) for path in files} == files


def state_of(study: Ran) -> dict[str, Any]:
    """Everything there is."""
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
    monkeypatch.setattr("cabs_search.tracking.tracker.save_model", full)
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
    tracker = Tracker(spec, mine.folder, mine.outcomes.study_id())
    old = client.create_logged_model(
        tracker.experiment_id, "best-found", tracker.parent_id, tags={"recipe": "another"}
    )
    client.log_metric(tracker.parent_id, "candidates", 3)
    found = mine.again(spec.override(trials=TRIALS + 4))
    parent, children = mine.runs()
    assert len(children) == TRIALS + 4
    assert parent.data.metrics["candidates"] == TRIALS + 4
    assert parent.data.metrics["score"] == found.leaderboard.row("best found").search_score
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
    """Stands in for a tracker; a server that is away refuses it."""

    def __init__(self) -> None:
        self.is_away, self.connections, self.candidates = False, 0, list[int]()
        self.refused: set[int] = set()

    def connect(self, *_: object) -> Written:
        self.connections += 1
        self._answer()
        return self

    def candidate(self, number: int) -> None:
        self._answer()
        if number in self.refused:
            raise ValueError(f"{number} has a name that is too long")
        self.candidates.append(number)

    def close(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.is_away:
            raise ConnectionError("refused\nmore about it")


@pytest.fixture
def written(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Written, Any, list[str]]]:
    """A stand-in, a study that writes to it, and what is said."""
    server, said = Written(), list[str]()
    monkeypatch.setattr("cabs_search.tracking.tracker.Tracker", server.connect)
    with BackgroundTracker(tmp_path, "http://server", said.append) as book:
        log = book.study(study.spec)
        log.open(study.outcomes, "id")
        yield server, log, said


def settle(log: Any) -> None:
    """Wait until all that was given is done."""
    done = threading.Event()
    log._book.later(done.set)
    assert done.wait(30)


def test_what_a_server_misses_is_written_in_order_once_it_is_back(
    written: tuple[Written, Any, list[str]],
) -> None:
    server, log, said = written
    log.candidate(0)
    settle(log)
    server.is_away = True
    for number in (1, 2, 3):
        log.candidate(number)
    settle(log)
    assert server.candidates == [0]
    assert len(said) == 1
    assert "refused" in said[0]
    assert "more about it" not in said[0]
    server.is_away = False
    log.candidate(4)
    settle(log)
    assert server.candidates == [0], "it is not asked again so soon"
    log._book._again = 0.0  # the time has passed
    log.candidate(5)
    settle(log)
    assert server.candidates == [0, 1, 2, 3, 4, 5]
    assert len(said) == 2
    assert "answers again" in said[1]


def test_the_end_of_a_study_tries_once_more(written: tuple[Written, Any, list[str]]) -> None:
    server, log, said = written
    settle(log)
    server.is_away = True
    log.candidate(1)
    settle(log)
    server.is_away = False
    log.close()
    settle(log)
    assert server.candidates == [1]
    assert len(said) == 2


def test_what_is_refused_keeps_nothing_else_waiting(
    written: tuple[Written, Any, list[str]],
) -> None:
    server, log, said = written
    server.refused = {1, 3}
    for number in range(5):
        log.candidate(number)
    settle(log)
    assert server.candidates == [0, 2, 4]
    assert server.connections == 1
    (line,) = said
    assert (
        line
        == "MLflow at http://server does not take a candidate (1 has a name that is too long); all"
        " else is written"
    )


class Clock:
    """Stands in for ``time`` where requests cost time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_server_that_swallows_requests_costs_little_in_all(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many studies end; every try costs ten seconds."""
    clock = Clock()

    def swallow(*_: object) -> None:
        clock.now += 10
        raise TimeoutError("no answer")

    said: list[str] = []
    monkeypatch.setattr("cabs_search.tracking.background.time", clock)
    monkeypatch.setattr("cabs_search.tracking.tracker.Tracker", swallow)
    with BackgroundTracker(tmp_path, "http://me:secret@server", said.append) as book:
        logs = [book.study(study.spec) for _ in range(40)]
        for log in logs:
            log.open(study.outcomes, "id")
            log.candidate(0)
            log.close()
    assert 10 < clock.now < 50
    (line,) = said
    assert "MLflow at http://server cannot be written (no answer)" in line


def test_a_slow_server_is_not_waited_for_longer_than_a_while(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, server, free, said = Clock(), Written(), threading.Event(), list[str]()

    def slow(number: int) -> None:
        clock.now += 7
        server.candidates.append(number)

    monkeypatch.setattr(server, "candidate", slow)
    monkeypatch.setattr("cabs_search.tracking.background.time", clock)
    monkeypatch.setattr("cabs_search.tracking.tracker.Tracker", server.connect)
    with BackgroundTracker(tmp_path, "http://server", said.append) as book:
        log = book.study(study.spec)
        log.open(study.outcomes, "id")
        book.later(lambda: assert_true(free.wait(30)))
        for number in range(100):
            log.candidate(number)
        threading.Timer(0.5, free.set).start()
    assert 60 <= clock.now < 70
    assert server.candidates == list(range(len(server.candidates)))
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
        MlflowClient(uri).create_run("0")
    assert is_unanswered(raised.value) is is_outage
    assert is_unanswered(raised.value, refusals=(500,)) is (is_outage and status != 500)


def test_a_run_whose_making_times_out_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may have made it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with answering(None) as (uri, asked), pytest.raises(Exception, match="timed out") as raised:
        MlflowClient(uri).create_run("0")
    assert is_unanswered(raised.value)
    assert len(asked) == 1


@contextmanager
def answering(status: int | None, body: bytes = b"") -> Iterator[tuple[str, list[str]]]:
    """A server that says this to all, or nothing in time; and what it was asked."""
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
    """As where the client lacks what the server's bucket asks for. A model that is too large is not
    tried.
    """

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
    """As where a server made them and was too slow to say so."""
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
    Tracker(mine.spec, mine.folder, mine.outcomes.study_id())
    assert mine.runs()[0].info.run_id == first.info.run_id
    assert candidates_of(mine) == before
    assert {run.info.run_id for run in mine.runs()[1]} == {run.info.run_id for run in children}


def test_an_experiment_that_was_deleted_comes_back(tmp_path: Path, study: Ran) -> None:
    tracker = Tracker(study.spec, tmp_path, "id")
    client = MlflowClient(tracker.uri)
    client.delete_experiment(tracker.experiment_id)
    again = Tracker(study.spec, tmp_path, "id")
    assert again.parent_id == tracker.parent_id
    assert client.get_experiment(again.experiment_id).lifecycle_stage == "active"


def test_a_table_has_no_number_that_json_does_not_know(tmp_path: Path, study: Ran) -> None:
    mine = Ran(study.spec, tmp_path)
    rows = [{"row": "a", "search": float("nan"), "p": float("inf"), "wins": 3}]
    Tracker(mine.spec, mine.folder, "id").finished(
        {}, Summary(metrics={}, note="", tables={"t": rows}, files={})
    )
    assert json.loads(mine.artifact("tables/t.json"), parse_constant=pytest.fail)["data"] == [
        ["a", None, None, 3]
    ]


def test_an_interrupted_search_does_not_wait_for_mlflow(
    study: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not written is left to the next run, but the study's run is closed."""
    server, closed, free = Written(), list[bool](), threading.Event()
    monkeypatch.setattr(server, "close", lambda: closed.append(True))
    monkeypatch.setattr("cabs_search.tracking.tracker.Tracker", server.connect)
    with (
        pytest.raises(KeyboardInterrupt),
        BackgroundTracker(tmp_path, "http://server", lambda _: None) as book,
    ):
        log = book.study(study.spec)
        log.open(study.outcomes, "id")
        book.later(lambda: assert_true(free.wait(30)))
        log.candidate(1)
        log.close()
        threading.Timer(0.5, free.set).start()
        raise KeyboardInterrupt
    assert (server.candidates, closed) == ([], [True])


def assert_true(value: bool) -> None:
    assert value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


def after(
    count: int, act: Callable[[], object], of: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have something happen just before a method's call of that number."""
    plain, calls = getattr(of, name), iter(range(1, 10**9))

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            act()
        return plain(self, *arguments, **options)

    monkeypatch.setattr(of, name, counted)


def candidates_of(study: Ran) -> dict[str, Any]:
    """What every candidate's run says, by its number; no two have one number."""
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
            after(4, die, Tracker, "candidate", patch)
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
