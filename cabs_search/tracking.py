"""MLflow: one parent run a study, one child a candidate. The only importer of mlflow; only the driver writes.

Runs are found again by their tags, so that a restart repeats nothing and completes what a killed driver left. A
candidate's metrics carry its own end as their time, and the parent's are written where they have changed, so that
writing all twice is writing it once.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import yaml

from cabs_search import views
from cabs_search.baselines import method_of
from cabs_search.checkpoint import first_line
from cabs_search.locations import without_passwords
from cabs_search.serving import inputs_of, reads_lists
from cabs_search.spec import DataSource, Spec, Task

if TYPE_CHECKING:
    from cabs_search.outcomes import Bound, Scored
    from cabs_search.search.study import Finished

Refused = Callable[[str, Exception], object]
STUDY_TAG, TRIAL_TAG, STATE_TAG, PARENT_TAG = "cabs_search.study", "cabs_search.trial", "state", "mlflow.parentRunId"
OF_TAG, COLOR_TAG = "cabs_search.candidate_of", "mlflow.runColor"
COLORS = ("#ff7f0e", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f", "#d62728")
"""Of candidates in MLflow's charts, by method."""
SERVER_FILE = "tracking-uri.txt"
POINTS = 10
"""Candidates after which the parent is told how far the search has come."""
MOST_METRICS = 1000
"""Metrics that MLflow takes at once."""
NO_STORE = (500,)
"""What a server answers that cannot reach its artifacts: of them, it is no outage that passes."""
MODEL = "best-found"
"""What the best found is called among an experiment's models."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""By which MLflow's UI shows runs and models, and not what is made for chat."""
SHOWN_VERSIONS = ("cabs-search", "torch", "transformers", "ray", "optuna", "mlflow")
NEEDED_TO_SERVE = ("cabs-search", "torch", "transformers", "numpy", "pandas")
"""What a logged model asks for, in the versions that made it."""
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # else once a candidate, for a request more
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a run whose making timed out may be there: seen later
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a study's run says once the study has ended, as plain values."""

    metrics: Mapping[str, float]
    note: str
    """Markdown, which the run's page shows."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """Rows by the table's name."""
    files: Mapping[str, bytes]
    """Artifacts by their paths, which MLflow finds again where they are ASCII."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The best found, to be logged as a model that ``serving`` loads."""

    key: str
    """The recipe's: one that is logged is not logged again."""
    text: str
    """The recipe in words."""
    tasks: Mapping[str, Task]
    write: Callable[[Path], object]
    """Writes it into a new folder."""
    example: Callable[[], Mapping[str, Any]]
    """A row that the first task reads."""


def default_uri(folder: Path) -> str:
    """The study's own SQLite file."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def uri_of(folder: Path) -> str:
    """The tracking URI of a folder's runs: the server they were written to last, or the folder's own file."""
    kept = folder / SERVER_FILE
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else default_uri(folder)


def _remember(folder: Path, uri: str | None) -> None:
    """Keep a server's address in the folder, for ``uri_of``; without the password that may be in it."""
    kept = folder / SERVER_FILE
    if uri is None or not is_server(uri):
        kept.unlink(missing_ok=True)
        return
    kept.write_text(without_logins(uri) + "\n", encoding="utf-8")


def without_logins(text: str) -> str:
    """A text, such as a tracking URI, without the user and password of the addresses in it."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def cause(error: BaseException) -> str:
    """What lies behind an error, in a few words."""
    return without_logins(first_line(list(_chain(error))[-1]))[:120]


def is_unanswered(error: BaseException, *, refusals: Collection[int] = ()) -> bool:
    """Whether MLflow did not answer or could not, so that the same may go well later; if not, it refused.

    Args:
        error: what writing raised.
        refusals: HTTP statuses that are no sign of an outage here.

    """
    plain = (ConnectionError, TimeoutError, sqlite3.OperationalError)
    of_requests = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    found = list(_chain(error))
    statuses = {status for each in found if (status := _status(each)) is not None} - set(refusals)
    return any(isinstance(each, (*plain, *of_requests)) for each in found) or any(
        s == 429 or s >= 500 for s in statuses
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what lies behind it."""
    yield error
    while (deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        yield (error := deeper)


def _status(error: BaseException) -> int | None:
    """The HTTP status with which a server answered; None where no server did."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, requests.HTTPError):
        return None if error.response is None else int(error.response.status_code)
    if not isinstance(error, MlflowException):
        return None
    if (
        named := re.search(r"(?:error code|too many) (\d{3}) ", str(error))
    ) is not None:  # no error of the server's MLflow
        return int(named[1])
    status = int(error.get_http_status_code())
    return status if isinstance(error, RestException) or status != 500 else None  # which all else in the client has


def is_server(uri: str) -> bool:
    """Whether a tracking URI is a server's, whose UI is there already."""
    return uri.startswith(("http://", "https://"))


@dataclass
class _Run:
    """A candidate's run, as much of it as matters here."""

    id: str
    recipe: str | None
    ended: int | None = None
    """Its end in milliseconds; None where it is not written whole."""
    is_confirmed: bool = False


def _known(run: Any) -> _Run:
    ended = run.info.end_time if run.info.status in ("FINISHED", "FAILED") else None
    return _Run(str(run.info.run_id), run.data.tags.get("recipe"), ended, "confirm.score" in run.data.metrics)


class Tracker:
    """Writes one study's runs."""

    def __init__(
        self,
        spec: Spec,
        folder: Path,
        study_id: str,
        uri: str | None = None,
        experiment: str | None = None,
        items: Sequence[Bound] = (),
        refused: Refused | None = None,
    ) -> None:
        """Find or create the experiment and the parent run.

        Args:
            folder: the study's folder; artifacts go there unless a server keeps them.
            study_id: what tells this study from others of its name.
            uri: a tracking URI; None: SQLite in ``folder``.
            experiment: the experiment's name; None: the spec's.
            items: what the study scores, for the run's data sets.
            refused: told what is refused, and why, of that on which nothing else depends; None: it is an error.

        """
        from mlflow import MlflowClient

        self._spec, self._folder, self._refused = spec, folder, refused
        self.uri = uri or default_uri(folder)
        _remember(folder, uri)
        self._client = MlflowClient(tracking_uri=self.uri)
        if uri is None:
            with closing(sqlite3.connect(folder / "mlflow.db", timeout=60)) as db:
                db.execute("PRAGMA journal_mode=WAL")  # stays so; a transaction then waits for the disk once
        self.experiment_id = self._find_experiment(experiment or spec.name, None if uri else folder / "artifacts")
        parents = sorted(self._search(f"tags.`{STUDY_TAG}` = '{study_id}'"), key=lambda run: run.info.start_time)
        self.parent_id = str(parents[0].info.run_id) if parents else self._create_parent(study_id)
        is_finished = bool(parents) and parents[0].info.status == "FINISHED"
        self._ended_at = parents[0].info.end_time if is_finished else None
        self._client.update_run(self.parent_id, status="RUNNING")
        self._describe_parent(parents[0].data.params if parents else {}, items)
        self._allow("saved views", lambda: self._save_views(study_id, comparison=experiment))
        children = self._children([str(run.info.run_id) for run in parents[1:]])
        self._told_at = 0
        self._written = {int(r.data.tags[TRIAL_TAG]): _known(r) for r in children}
        self._study_id = study_id
        found = sorted(filter(None, map(_progress_of, children)), key=lambda progress: progress.items)
        self._progress = found[-1] if found else _Progress(items=0, best=float("-inf"), ended=0)
        self._unwritten = found  # on the parent, as far as is known; a point that is written again is the same point

    def _allow(self, what: str, act: Callable[[], object], *, refusals: Collection[int] = ()) -> None:
        """Do something on which nothing else depends: where it is refused, that is said and the rest goes on."""
        try:
            act()
        except Exception as error:
            if self._refused is None or is_unanswered(error, refusals=refusals):
                raise
            self._refused(what, error)

    def _children(self, doubles: Sequence[str]) -> list[Any]:
        """The candidates' runs, one each; ``doubles``: parents made by a request whose answer was lost."""
        found = self._search(f"tags.`{PARENT_TAG}` = '{self.parent_id}'")
        for double in doubles:
            for run in self._search(f"tags.`{PARENT_TAG}` = '{double}'"):
                self._client.set_tag(run.info.run_id, PARENT_TAG, self.parent_id)
                found.append(run)
            self._delete(double)
        kept: dict[str, Any] = {}
        for run in sorted(found, key=lambda run: (_known(run).ended is None, run.info.start_time)):
            if (trial := run.data.tags.get(TRIAL_TAG)) is not None and kept.setdefault(trial, run) is not run:
                self._delete(run.info.run_id)
        return list(kept.values())

    def _delete(self, run_id: str) -> None:
        self._allow("the deletion of runs that are there twice", lambda: self._client.delete_run(run_id))

    def _find_experiment(self, name: str, artifacts: Path | None) -> str:
        """The id of an experiment, made where there is none; ``artifacts``: their folder, where no server has them."""
        if (known := self._client.get_experiment_by_name(name)) is not None:
            if known.lifecycle_stage == "deleted":  # its name is taken, so that there is no other way
                self._client.restore_experiment(known.experiment_id)
            return str(known.experiment_id)
        location = artifacts.resolve().as_uri() if artifacts else None
        return str(self._client.create_experiment(name, artifact_location=location, tags=KIND))

    def _search(self, filter_string: str) -> list[Any]:
        found, token = [], None
        while True:
            page = self._client.search_runs([self.experiment_id], filter_string, max_results=1000, page_token=token)
            found += list(page)
            if not (token := page.token):
                return found

    def _create_parent(self, study_id: str) -> str:
        run = self._client.create_run(self.experiment_id, run_name=self._spec.name, tags={STUDY_TAG: study_id})
        return str(run.info.run_id)

    def _describe_parent(self, known: Mapping[str, str], items: Sequence[Bound]) -> None:
        """What is searched, with what; written again each time, so that a killed driver leaves nothing out."""
        from mlflow.entities import Param, RunTag

        spec = self._spec
        params = {
            "base": spec.base,
            "experts": ", ".join(spec.experts),
            "sampler": spec.search.sampler,
            "seed": str(spec.seed),
        }
        self._client.log_batch(
            self.parent_id,
            params=[Param(key, value) for key, value in params.items() if key not in known],
            tags=[RunTag(key, value) for key, value in _facts(spec).items()],
        )
        data, text = (
            [_data_set(spec, bound) for bound in items],
            yaml.safe_dump(without_passwords(spec.as_dict()), sort_keys=False),
        )
        self._allow("data sets", lambda: self._client.log_inputs(self.parent_id, datasets=data))
        write = partial(self._client.log_text, self.parent_id, text, "spec.yaml")
        self._allow("artifacts", write, refusals=NO_STORE)

    def _save_views(self, study_id: str, comparison: str | None) -> None:
        """Write the saved views of the study, or of the comparison it is a value of, where MLflow reads them."""
        version = _version_at(self.uri)
        if not views.are_read_by(version):
            raise RuntimeError(f"version {version} has none, {'.'.join(map(str, views.SINCE))} has")
        found = views.made_for("study" if comparison is None else "value", self._spec, self.parent_id, self._spec.name)
        if comparison is not None:
            found += views.made_for("comparison", self._spec, study_id.partition("/")[0], comparison)
        known = self._client.get_experiment(self.experiment_id).tags
        for key, value in (view.tag for view in found):
            if known.get(key) != value:
                self._client.set_experiment_tag(self.experiment_id, key, value)

    def candidate(self, finished: Finished) -> None:
        """Write a finished candidate as a child; one that is there already stays as it is.

        Candidates must come in the order in which they ended.
        """
        from mlflow.entities import Metric, Param, RunTag

        run = self._written.get(finished.number)
        if run is not None and run.ended is not None:
            return
        started, ended = (int(t.timestamp() * 1000) for t in (finished.started, finished.ended))
        value = self._study_id.partition("/")[2]
        params = {k: str(v) for k, v in _params(finished).items()} | ({"value": value} if value else {})
        progress = self._progress if finished.scored is None else self._progress.after(finished.scored, ended)
        metrics = _metrics(finished) | (progress.as_metrics() if finished.scored else {})
        tags = {STATE_TAG: finished.state} | ({"error": finished.error} if finished.error else {})
        if run is None:
            tags |= {PARENT_TAG: self.parent_id, TRIAL_TAG: str(finished.number), "recipe": finished.recipe.key}
            tags |= {OF_TAG: self._study_id, COLOR_TAG: _color(self._spec, finished)}
            name = " ".join([str(finished.number), *(v for k, v in params.items() if k in ("method", "nm", "density"))])
            created = self._client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=name)
            run = self._written[finished.number] = _Run(str(created.info.run_id), finished.recipe.key)
            tags = {}
        self._client.log_batch(
            run.id,
            metrics=[Metric(k, v, ended, 0) for k, v in metrics.items()],
            params=[Param(k, v) for k, v in params.items()],
            tags=[RunTag(k, v) for k, v in tags.items()],
        )
        self._client.set_terminated(run.id, "FINISHED" if finished.scored else "FAILED", end_time=ended)
        run.ended = ended
        if finished.scored is not None:
            self._progress = progress
            self._unwritten.append(progress)
        if len(self._unwritten) >= POINTS:
            self._tell_progress()

    def _tell_progress(self) -> None:
        self._allow("how far a search has come", self._write_progress)

    def _write_progress(self) -> None:
        """Write how far the search has come to the parent, as a history that a line is drawn from."""
        from mlflow.entities import Metric

        for begin in range(0, len(self._unwritten), MOST_METRICS // 2):
            points = self._unwritten[begin : begin + MOST_METRICS // 2]
            made = [Metric(k, v, p.ended, p.items) for p in points for k, v in p.as_metrics().items()]
            self._client.log_batch(self.parent_id, metrics=made)
        self._unwritten = []

    def finished(self, confirmed: Mapping[str, Scored], summary: Summary) -> None:
        """Write what a study that is complete has found.

        Args:
            confirmed: scores on the confirm split by recipe's key, for the candidates' runs.
            summary: what the parent says.

        """
        tables = {f"tables/{name}.json": _table(rows) for name, rows in summary.tables.items()}
        self._allow("scores on the confirm split", lambda: self._confirm_all(confirmed))
        self._allow("a study's metrics", lambda: self._tell(summary.metrics))
        self._allow("artifacts", lambda: self._log_files(tables | dict(summary.files)), refusals=NO_STORE)
        self._allow("a study's note", lambda: self._describe(summary.note, list(tables)))

    def _confirm_all(self, confirmed: Mapping[str, Scored]) -> None:
        by_recipe = {run.recipe: run for run in self._written.values()}
        for key, scored in confirmed.items():
            if (run := by_recipe.get(key)) is not None and not run.is_confirmed:
                self._confirm(run, scored)

    def _confirm(self, run: _Run, scored: Scored) -> None:
        from mlflow.entities import Metric

        values = {"confirm.score": scored.score} | {f"confirm.score.{t}": v for t, v in scored.scores.items()}
        self._client.log_batch(run.id, metrics=[Metric(k, v, run.ended, 0) for k, v in values.items()])
        run.is_confirmed = True

    def _tell(self, metrics: Mapping[str, float]) -> None:
        """The parent's metrics, where they are not what it says already."""
        from mlflow.entities import Metric

        known, self._told_at = self._client.get_run(self.parent_id).data.metrics, int(time.time() * 1000)
        changed = {key: value for key, value in metrics.items() if known.get(key) != value}
        self._client.log_batch(self.parent_id, metrics=[Metric(k, v, self._told_at, 0) for k, v in changed.items()])

    def _log_files(self, files: Mapping[str, bytes]) -> None:
        """Artifacts by their paths."""
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                to = Path(folder) / path
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(content)
            self._client.log_artifacts(self.parent_id, folder)

    def _describe(self, note: str, tables: Sequence[str]) -> None:
        """The note, and which artifacts are tables that MLflow's UI reads."""
        from mlflow.entities import RunTag

        listed = json.dumps([{"path": path, "type": "table"} for path in tables])
        tags = {"mlflow.note.content": note, "mlflow.loggedArtifacts": listed}
        self._client.log_batch(self.parent_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_model(self, model: Model, metrics: Mapping[str, float]) -> None:
        """Log the best found, once; one of an earlier best goes, and so does what a try before left half done."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

        if self._prune_models(model):
            return
        made = self._client.create_logged_model(
            self.experiment_id, MODEL, self.parent_id, tags={"recipe": model.key}, params={"recipe": model.text}
        )
        try:
            self._write_model(model, made)
        except Exception as error:
            if not is_unanswered(error):
                self._client.delete_logged_model(made.model_id)
            raise
        self._client.log_outputs(self.parent_id, [LoggedModelOutput(made.model_id, step=0)])
        own = {key: value for key, value in metrics.items() if key.startswith(("score", "confirm"))}
        of_model = [Metric(k, v, self._told_at, 0, model_id=made.model_id) for k, v in own.items()]
        self._client.log_batch(self.parent_id, metrics=of_model)
        self._client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)  # last: one that is ready is whole
        self._prune_models(model)

    def _prune_models(self, model: Model) -> bool:
        """Delete the study's models but this one, where it is whole; whether it is."""
        from mlflow.entities import LoggedModelStatus

        is_kept, filter_ = False, f"source_run_id = '{self.parent_id}'"
        for known in self._client.search_logged_models([self.experiment_id], filter_string=filter_):
            if known.tags.get("recipe") == model.key and known.status == LoggedModelStatus.READY and not is_kept:
                is_kept = True
            else:
                self._client.delete_logged_model(known.model_id)
        return is_kept

    def _write_model(self, model: Model, made: Any) -> None:
        for left in self._folder.glob(".model-*"):  # by a driver that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".model-") as folder:
            _save_model(model, Path(folder), made)
            self._client.log_model_artifacts(made.model_id, f"{folder}/model")

    def end(self) -> None:
        """Close the parent run of a search that is complete; one that was, and has no new candidate, ended then."""
        self._tell_progress()
        last = max((run.ended or 0 for run in self._written.values()), default=0)
        self._close("FINISHED", "complete", self._ended_at if self._ended_at and self._ended_at >= last else None)

    def close(self) -> None:
        """Close the parent run of a search that did not end by itself; the next run of the study opens it again."""
        self._tell_progress()
        self._close("KILLED", "stopped")

    def _close(self, status: str, state: str, ended: int | None = None) -> None:
        self._client.set_tag(self.parent_id, STATE_TAG, state)
        self._client.set_terminated(self.parent_id, status, end_time=ended)


def _facts(spec: Spec) -> dict[str, str]:
    """What a study is and what it runs on, as tags, which may change from one run to the next."""
    from mlflow.utils.git_utils import get_git_commit

    facts = {
        STATE_TAG: "running",
        "methods": ", ".join(dict.fromkeys((*spec.baselines, *spec.space.method))),
        "mlflow.source.name": "cabs-search",
        "mlflow.source.type": "LOCAL",
        "version.python": sys.version.split()[0],
    }
    facts |= {f"version.{package}": found for package in SHOWN_VERSIONS if (found := _version(package))}
    commit = get_git_commit(str(Path.cwd()))
    return facts | ({"mlflow.source.git.commit": commit} if commit else {})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # such as this one in a checkout that is not installed
        return None


def _data_set(spec: Spec, bound: Bound) -> Any:
    """Some of a task's items as one of MLflow's data sets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    task = spec.tasks[bound.task]
    kind, source = _source(task.dataset, getattr(task, bound.split).split or task.split)
    made = Dataset(bound.task, bound.digest, kind, json.dumps(source), profile=json.dumps({"num_rows": bound.items}))
    return DatasetInput(made, [InputTag("mlflow.data.context", bound.split)])


def _source(data: DataSource, split: str | None) -> tuple[str, dict[str, Any]]:
    """A kind of source that MLflow knows, and what it says of one."""
    if data.hub:
        return "hugging_face", {"path": data.hub, "config_name": data.config, "split": split}
    if data.callable:
        return "code", {"tags": {"mlflow.source.name": data.callable}}
    return "local", {"uri": data.csv or data.json or data.parquet}


def _table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows in the form of ``mlflow.log_table``, which would add them to those that are there."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = [[_finite(row.get(column)) for column in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    """A plain value; None for a number that JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save_model(model: Model, folder: Path, made: Any) -> None:
    """The model in MLflow's form in ``folder/model``."""
    import mlflow.models
    import pandas as pd
    from mlflow import pyfunc

    model.write(folder / "merged")
    first = next(iter(model.tasks))
    pyfunc.save_model(
        folder / "model",
        loader_module="cabs_search.serving",
        data_path=str(folder / "merged"),
        mlflow_model=mlflow.models.Model(
            artifact_path=made.artifact_location,
            run_id=made.source_run_id,
            model_id=made.model_id,
            model_uuid=made.model_id,
        ),
        signature=_signature(model.tasks),
        input_example=(pd.DataFrame([model.example()]), {"task": first}),
        pip_requirements=[f"{package}=={found}" for package in NEEDED_TO_SERVE if (found := _version(package))],
    )


def _signature(tasks: Mapping[str, Task]) -> Any:
    """Every column that some task reads, none of them required, and the task's name; predictions if all are alike."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    text, listed = DataType.string, Array(DataType.string)
    kinds: dict[str, set[bool]] = {}
    for task in tasks.values():
        for column in inputs_of(task):
            kinds.setdefault(column, set()).add(reads_lists(task, column))
    types = {column: AnyType() if len(has) > 1 else listed if has == {True} else text for column, has in kinds.items()}
    made = {
        "classification": DataType.long,
        "multiple-choice": DataType.long,
        "regression": DataType.double,
        "question-answering": text,
        "token-classification": listed,
    }
    predicted = [made[task.kind] for task in tasks.values()]
    return ModelSignature(
        inputs=Schema([ColSpec(type_, column, required=False) for column, type_ in types.items()]),
        outputs=Schema([ColSpec(predicted[0])]) if all(each == predicted[0] for each in predicted) else None,
        params=ParamSchema([ParamSpec("task", text, next(iter(tasks)))]),
    )


def _params(finished: Finished) -> dict[str, Any]:
    recipe = finished.recipe
    params: dict[str, Any] = {}
    for name, value in recipe.as_dict().items():
        if name == "order":
            short = _shortened(value)
            params |= {"order": ">".join(value), "order_short": ">".join(short[e] for e in value)}
            params |= {f"rank.{e}": rank for rank, e in enumerate(value, 1)}
        elif isinstance(value, dict):  # λ, and what experts have of their own
            params |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            params[name] = value
    return params


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """Beginnings, of three letters or as many more as tell names apart: the axis of a chart cuts what is long."""
    found = {}
    for name in names:
        alone = (name[:n] for n in range(3, len(name)) if sum(other.startswith(name[:n]) for other in names) == 1)
        found[name] = next(alone, name)
    return found


def _metrics(finished: Finished) -> dict[str, float]:
    metrics = {"materialize_seconds": finished.materialize_seconds}
    if (scored := finished.scored) is None:
        return metrics
    metrics |= {"score": scored.score, "items": float(scored.items), "evaluate_seconds": scored.evaluate_seconds}
    metrics |= {f"score.{task}": value for task, value in scored.scores.items()}
    return metrics | {f"loss.{task}": value for task, value in scored.losses.items()}


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """How far a search has come with one more candidate."""

    items: int
    """Search items scored, of all candidates that are complete."""
    best: float
    """The best score so far."""
    ended: int
    """The candidate's end in milliseconds."""

    def after(self, scored: Scored, ended: int) -> _Progress:
        """The same with one more candidate."""
        return _Progress(items=self.items + scored.items, best=max(self.best, scored.score), ended=ended)

    def as_metrics(self) -> dict[str, float]:
        """For MLflow."""
        return {"items_spent": float(self.items), "best_score": self.best}


def _progress_of(child: Any) -> _Progress | None:
    """What was written with a candidate; None where it is not written whole or has no score."""
    metrics = child.data.metrics
    if child.info.end_time is None or not metrics.keys() >= {"items_spent", "best_score"}:
        return None
    return _Progress(items=int(metrics["items_spent"]), best=metrics["best_score"], ended=child.info.end_time)


def _color(spec: Spec, finished: Finished) -> str:
    """One for each method, so that charts are read without a legend of runs."""
    names = list(dict.fromkeys(method_of(spec, name).name for name in (*spec.space.method, *spec.baselines)))
    return COLORS[names.index(finished.recipe.method.name) % len(COLORS)]


def _version_at(uri: str) -> str:
    """The version of the MLflow that shows the runs: of a server its own, else the one that is installed."""
    import mlflow

    if not is_server(uri):
        return str(mlflow.__version__)
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET")
    return str(answer.text).strip() if answer.ok else "of unknown version"


def links(uri: str, root: str, experiment: str, study_id: str, *, is_comparison: bool) -> dict[str, str]:
    """Addresses of a study's or comparison's runs in the UI at ``root``, by what is seen there; empty without runs.

    Args:
        uri: the tracking URI.
        experiment: the experiment's name.
        study_id: the study's; of a comparison, what those of its studies begin with.

    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return {}
    filter_ = f"tags.`{STUDY_TAG}` LIKE '{study_id}/%'" if is_comparison else f"tags.`{STUDY_TAG}` = '{study_id}'"
    runs = client.search_runs([found.experiment_id], filter_, max_results=1)
    if not runs:
        return {}
    saved = views.found_in(found.tags, study_id if is_comparison else str(runs[0].info.run_id))
    every = {"all runs": views.runs_url(root, str(found.experiment_id))}
    return every | {view.name: view.url(root, str(found.experiment_id)) for view in saved}
