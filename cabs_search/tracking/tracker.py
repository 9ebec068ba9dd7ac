"""MLflow: one parent run a study, one child a candidate. The only importer of mlflow; only the
driver writes.

Runs are found again by their tags, so that a restart repeats nothing and completes what a killed
driver left. A candidate's metrics carry its own end as their time, and the parent's are written
where they have changed, so that writing all twice is writing it once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cabs_search.common.files import use_write_ahead_log
from cabs_search.common.redact import without_passwords
from cabs_search.record.folder import StudyFolder
from cabs_search.spec.study import Spec
from cabs_search.tracking import views
from cabs_search.tracking.failures import ARTIFACT_STORE_DOWN, is_unanswered
from cabs_search.tracking.models import MODEL, Model, save_model
from cabs_search.tracking.runs import (
    COLOR_TAG,
    OF_TAG,
    PARENT_TAG,
    STATE_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    ChildRun,
    SearchProgress,
    candidate_metrics,
    candidate_params,
    child_run,
    color_of,
    data_set,
    progress_of,
    study_tags,
    table_bytes,
)
from cabs_search.tracking.server import default_uri, remember_uri, version_at
from cabs_search.tracking.summary import Summary

if TYPE_CHECKING:
    from cabs_search.record.outcomes import Bound, Scored
    from cabs_search.search.jobs import Finished


Refused = Callable[[str, Exception], object]
POINTS = 10
"""Candidates after which the parent is told how far the search has come."""
MOST_METRICS = 1000
"""Metrics that MLflow takes at once."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""By which MLflow's UI shows runs and models, and not what is made for chat."""
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault(
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
)  # else once a candidate, for a request more
os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"
)  # a run whose making timed out may be there: seen later
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


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
            refused: told what is refused, and why, of that on which nothing else depends; None: it
                is an error.

        """
        from mlflow import MlflowClient

        self._spec, self._folder, self._refused = spec, folder, refused
        self.uri = uri or default_uri(folder)
        remember_uri(folder, uri)
        self._client = MlflowClient(tracking_uri=self.uri)
        if uri is None:
            use_write_ahead_log(StudyFolder(folder).tracking_database)
        self.experiment_id = self._find_experiment(
            experiment or spec.name, None if uri else StudyFolder(folder).artifacts
        )
        parents = sorted(
            self._search(f"tags.`{STUDY_TAG}` = '{study_id}'"), key=lambda run: run.info.start_time
        )
        self.parent_id = str(parents[0].info.run_id) if parents else self._create_parent(study_id)
        is_finished = bool(parents) and parents[0].info.status == "FINISHED"
        self._ended_at = parents[0].info.end_time if is_finished else None
        self._client.update_run(self.parent_id, status="RUNNING")
        self._describe_parent(parents[0].data.params if parents else {}, items)
        self._allow("saved views", lambda: self._save_views(study_id, comparison=experiment))
        children = self._children([str(run.info.run_id) for run in parents[1:]])
        self._told_at = 0
        self._written = {int(r.data.tags[TRIAL_TAG]): child_run(r) for r in children}
        self._study_id = study_id
        found = sorted(
            filter(None, map(progress_of, children)), key=lambda progress: progress.items
        )
        self._progress = (
            found[-1] if found else SearchProgress(items=0, best=float("-inf"), ended=0)
        )
        # on the parent, as far as is known; a point that is written again is the same point
        self._unwritten = found

    def _allow(
        self, what: str, act: Callable[[], object], *, refusals: Collection[int] = ()
    ) -> None:
        """Do something on which nothing else depends: where it is refused, that is said and the
        rest goes on.
        """
        try:
            act()
        except Exception as error:
            if self._refused is None or is_unanswered(error, refusals=refusals):
                raise
            self._refused(what, error)

    def _children(self, doubles: Sequence[str]) -> list[Any]:
        """The candidates' runs, one each; ``doubles``: parents made by a request whose answer was
        lost.
        """
        found = self._search(f"tags.`{PARENT_TAG}` = '{self.parent_id}'")
        for double in doubles:
            for run in self._search(f"tags.`{PARENT_TAG}` = '{double}'"):
                self._client.set_tag(run.info.run_id, PARENT_TAG, self.parent_id)
                found.append(run)
            self._delete(double)
        kept: dict[str, Any] = {}
        for run in sorted(
            found, key=lambda run: (child_run(run).ended is None, run.info.start_time)
        ):
            if (trial := run.data.tags.get(TRIAL_TAG)) is not None and kept.setdefault(
                trial, run
            ) is not run:
                self._delete(run.info.run_id)
        return list(kept.values())

    def _delete(self, run_id: str) -> None:
        self._allow(
            "the deletion of runs that are there twice", lambda: self._client.delete_run(run_id)
        )

    def _find_experiment(self, name: str, artifacts: Path | None) -> str:
        """The id of an experiment, made where there is none; ``artifacts``: their folder, where no
        server has them.
        """
        if (known := self._client.get_experiment_by_name(name)) is not None:
            if (
                known.lifecycle_stage == "deleted"
            ):  # its name is taken, so that there is no other way
                self._client.restore_experiment(known.experiment_id)
            return str(known.experiment_id)
        location = artifacts.resolve().as_uri() if artifacts else None
        return str(self._client.create_experiment(name, artifact_location=location, tags=KIND))

    def _search(self, filter_string: str) -> list[Any]:
        found, token = [], None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], filter_string, max_results=1000, page_token=token
            )
            found += list(page)
            if not (token := page.token):
                return found

    def _create_parent(self, study_id: str) -> str:
        run = self._client.create_run(
            self.experiment_id, run_name=self._spec.name, tags={STUDY_TAG: study_id}
        )
        return str(run.info.run_id)

    def _describe_parent(self, known: Mapping[str, str], items: Sequence[Bound]) -> None:
        """What is searched, with what; written again each time, so that a killed driver leaves
        nothing out.
        """
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
            tags=[RunTag(key, value) for key, value in study_tags(spec).items()],
        )
        data, text = (
            [data_set(spec, bound) for bound in items],
            yaml.safe_dump(without_passwords(spec.as_dict()), sort_keys=False),
        )
        self._allow("data sets", lambda: self._client.log_inputs(self.parent_id, datasets=data))
        write = partial(self._client.log_text, self.parent_id, text, "spec.yaml")
        self._allow("artifacts", write, refusals=ARTIFACT_STORE_DOWN)

    def _save_views(self, study_id: str, comparison: str | None) -> None:
        """Write the saved views of the study, or of the comparison it is a value of, where MLflow
        reads them.
        """
        version = version_at(self.uri)
        if not views.are_read_by(version):
            raise RuntimeError(f"version {version} has none, {'.'.join(map(str, views.SINCE))} has")
        found = views.made_for(
            "study" if comparison is None else "value", self._spec, self.parent_id, self._spec.name
        )
        if comparison is not None:
            found += views.made_for(
                "comparison", self._spec, study_id.partition("/")[0], comparison
            )
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
        params = {k: str(v) for k, v in candidate_params(finished).items()} | (
            {"value": value} if value else {}
        )
        progress = (
            self._progress
            if finished.scored is None
            else self._progress.after(finished.scored, ended)
        )
        metrics = candidate_metrics(finished) | (progress.as_metrics() if finished.scored else {})
        tags = {STATE_TAG: finished.state} | ({"error": finished.error} if finished.error else {})
        if run is None:
            tags |= {
                PARENT_TAG: self.parent_id,
                TRIAL_TAG: str(finished.number),
                "recipe": finished.recipe.key,
            }
            tags |= {OF_TAG: self._study_id, COLOR_TAG: color_of(self._spec, finished)}
            name = " ".join(
                [
                    str(finished.number),
                    *(v for k, v in params.items() if k in ("method", "nm", "density")),
                ]
            )
            created = self._client.create_run(
                self.experiment_id, start_time=started, tags=tags, run_name=name
            )
            run = self._written[finished.number] = ChildRun(
                str(created.info.run_id), finished.recipe.key
            )
            tags = {}
        self._client.log_batch(
            run.id,
            metrics=[Metric(k, v, ended, 0) for k, v in metrics.items()],
            params=[Param(k, v) for k, v in params.items()],
            tags=[RunTag(k, v) for k, v in tags.items()],
        )
        self._client.set_terminated(
            run.id, "FINISHED" if finished.scored else "FAILED", end_time=ended
        )
        run.ended = ended
        if finished.scored is not None:
            self._progress = progress
            self._unwritten.append(progress)
        if len(self._unwritten) >= POINTS:
            self._tell_progress()

    def _tell_progress(self) -> None:
        self._allow("how far a search has come", self._write_progress)

    def _write_progress(self) -> None:
        """Write how far the search has come to the parent, as a history that a line is drawn
        from.
        """
        from mlflow.entities import Metric

        for begin in range(0, len(self._unwritten), MOST_METRICS // 2):
            points = self._unwritten[begin : begin + MOST_METRICS // 2]
            made = [
                Metric(k, v, p.ended, p.items) for p in points for k, v in p.as_metrics().items()
            ]
            self._client.log_batch(self.parent_id, metrics=made)
        self._unwritten = []

    def finished(self, confirmed: Mapping[str, Scored], summary: Summary) -> None:
        """Write what a study that is complete has found.

        Args:
            confirmed: scores on the confirm split by recipe's key, for the candidates' runs.
            summary: what the parent says.

        """
        tables = {f"tables/{name}.json": table_bytes(rows) for name, rows in summary.tables.items()}
        self._allow("scores on the confirm split", lambda: self._confirm_all(confirmed))
        self._allow("a study's metrics", lambda: self._tell(summary.metrics))
        self._allow(
            "artifacts",
            lambda: self._log_files(tables | dict(summary.files)),
            refusals=ARTIFACT_STORE_DOWN,
        )
        self._allow("a study's note", lambda: self._describe(summary.note, list(tables)))

    def _confirm_all(self, confirmed: Mapping[str, Scored]) -> None:
        by_recipe = {run.recipe: run for run in self._written.values()}
        for key, scored in confirmed.items():
            if (run := by_recipe.get(key)) is not None and not run.is_confirmed:
                self._confirm(run, scored)

    def _confirm(self, run: ChildRun, scored: Scored) -> None:
        from mlflow.entities import Metric

        values = {"confirm.score": scored.score} | {
            f"confirm.score.{t}": v for t, v in scored.scores.items()
        }
        self._client.log_batch(
            run.id, metrics=[Metric(k, v, run.ended, 0) for k, v in values.items()]
        )
        run.is_confirmed = True

    def _tell(self, metrics: Mapping[str, float]) -> None:
        """The parent's metrics, where they are not what it says already."""
        from mlflow.entities import Metric

        known, self._told_at = (
            self._client.get_run(self.parent_id).data.metrics,
            int(time.time() * 1000),
        )
        changed = {key: value for key, value in metrics.items() if known.get(key) != value}
        self._client.log_batch(
            self.parent_id, metrics=[Metric(k, v, self._told_at, 0) for k, v in changed.items()]
        )

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
        self._client.log_batch(
            self.parent_id, tags=[RunTag(key, value) for key, value in tags.items()]
        )

    def log_model(self, model: Model, metrics: Mapping[str, float]) -> None:
        """Log the best found, once; one of an earlier best goes, and so does what a try before left
        half done.
        """
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

        if self._prune_models(model):
            return
        made = self._client.create_logged_model(
            self.experiment_id,
            MODEL,
            self.parent_id,
            tags={"recipe": model.key},
            params={"recipe": model.text},
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
        self._client.finalize_logged_model(
            made.model_id, LoggedModelStatus.READY
        )  # last: one that is ready is whole
        self._prune_models(model)

    def _prune_models(self, model: Model) -> bool:
        """Delete the study's models but this one, where it is whole; whether it is."""
        from mlflow.entities import LoggedModelStatus

        is_kept, filter_ = False, f"source_run_id = '{self.parent_id}'"
        for known in self._client.search_logged_models([self.experiment_id], filter_string=filter_):
            if (
                known.tags.get("recipe") == model.key
                and known.status == LoggedModelStatus.READY
                and not is_kept
            ):
                is_kept = True
            else:
                self._client.delete_logged_model(known.model_id)
        return is_kept

    def _write_model(self, model: Model, made: Any) -> None:
        for left in self._folder.glob(".model-*"):  # by a driver that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".model-") as folder:
            save_model(model, Path(folder), made)
            self._client.log_model_artifacts(made.model_id, f"{folder}/model")

    def end(self) -> None:
        """Close the parent run of a search that is complete; one that was, and has no new
        candidate, ended then.
        """
        self._tell_progress()
        last = max((run.ended or 0 for run in self._written.values()), default=0)
        self._close(
            "FINISHED",
            "complete",
            self._ended_at if self._ended_at and self._ended_at >= last else None,
        )

    def close(self) -> None:
        """Close the parent run of a search that did not end by itself; the next run of the study
        opens it again.
        """
        self._tell_progress()
        self._close("KILLED", "stopped")

    def _close(self, status: str, state: str, ended: int | None = None) -> None:
        self._client.set_tag(self.parent_id, STATE_TAG, state)
        self._client.set_terminated(self.parent_id, status, end_time=ended)
