"""MLflow: one parent run a study, one child a candidate. The only importer of mlflow; only the driver writes.

Children are found again by their tags, so that a restart repeats nothing and completes what a killed driver left.
Metrics carry the candidate's own end as their time, so that writing one twice is writing it once.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cabs_search import views
from cabs_search.spec import Spec

if TYPE_CHECKING:
    from cabs_search.outcomes import Scored
    from cabs_search.search.study import Finished

STUDY_TAG, TRIAL_TAG, STATE_TAG, PARENT_TAG = "cabs_search.study", "cabs_search.trial", "state", "mlflow.parentRunId"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a search does not wait minutes for a dead server
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def default_uri(folder: Path) -> str:
    """The study's own SQLite file."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


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
        self, spec: Spec, folder: Path, study_id: str, uri: str | None = None, experiment: str | None = None
    ) -> None:
        """Find or create the experiment and the parent run.

        Args:
            folder: the study's folder; artifacts go there unless a server keeps them.
            study_id: what tells this study from others of its name.
            uri: a tracking URI; None: SQLite in ``folder``.
            experiment: the experiment's name; None: the spec's.

        """
        from mlflow import MlflowClient

        self._spec = spec
        self.uri = uri or default_uri(folder)
        self._client = MlflowClient(tracking_uri=self.uri)
        if uri is None:
            with closing(sqlite3.connect(folder / "mlflow.db", timeout=60)) as db:
                db.execute("PRAGMA journal_mode=WAL")  # stays so; a transaction then waits for the disk once
        name = experiment or spec.name
        known = self._client.get_experiment_by_name(name)
        if known is None:
            artifacts = (folder / "artifacts").resolve().as_uri() if uri is None else None
            self.experiment_id = str(self._client.create_experiment(name, artifact_location=artifacts))
        else:
            self.experiment_id = str(known.experiment_id)
        parents = self._search(f"tags.`{STUDY_TAG}` = '{study_id}'")
        self.parent_id = str(parents[0].info.run_id) if parents else self._create_parent(study_id)
        self._client.update_run(self.parent_id, status="RUNNING")
        self._describe_parent()
        for key, value in views.tags(spec, self.parent_id).items():
            self._client.set_experiment_tag(self.experiment_id, key, value)
        children = self._search(f"tags.`{PARENT_TAG}` = '{self.parent_id}'")
        self._written = {int(r.data.tags[TRIAL_TAG]): _known(r) for r in children if TRIAL_TAG in r.data.tags}

    def _search(self, filter_string: str) -> list[Any]:
        found, token = [], None
        while True:
            page = self._client.search_runs([self.experiment_id], filter_string, max_results=1000, page_token=token)
            found += list(page)
            if not (token := page.token):
                return found

    def _create_parent(self, study_id: str) -> str:
        run = self._client.create_run(
            self.experiment_id,
            run_name=self._spec.name,
            tags={STUDY_TAG: study_id, "mlflow.source.name": "cabs-search"},
        )
        return str(run.info.run_id)

    def _describe_parent(self) -> None:
        """What was searched; written again each time, so that a killed driver leaves nothing out."""
        spec = self._spec
        self._client.log_text(self.parent_id, yaml.safe_dump(spec.as_dict(), sort_keys=False), "spec.yaml")
        known = self._client.get_run(self.parent_id).data.params
        params = {
            "base": spec.base,
            "experts": ", ".join(spec.experts),
            "sampler": spec.search.sampler,
            "seed": spec.seed,
        }
        for key, value in params.items():
            if key not in known:
                self._client.log_param(self.parent_id, key, value)

    def candidate(self, finished: Finished) -> None:
        """Write a finished candidate as a child; one that is there already stays as it is."""
        from mlflow.entities import Metric, Param, RunTag

        run = self._written.get(finished.number)
        if run is not None and run.ended is not None:
            return
        started, ended = (int(t.timestamp() * 1000) for t in (finished.started, finished.ended))
        params = {k: str(v) for k, v in _params(finished).items()}
        tags = {STATE_TAG: finished.state} | ({"error": finished.error} if finished.error else {})
        if run is None:
            tags |= {PARENT_TAG: self.parent_id, TRIAL_TAG: str(finished.number), "recipe": finished.recipe.key}
            name = " ".join([str(finished.number), *(v for k, v in params.items() if k in ("method", "nm", "density"))])
            created = self._client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=name)
            run = self._written[finished.number] = _Run(str(created.info.run_id), finished.recipe.key)
            tags = {}
        self._client.log_batch(
            run.id,
            metrics=[Metric(k, v, ended, 0) for k, v in _metrics(finished).items()],
            params=[Param(k, v) for k, v in params.items()],
            tags=[RunTag(k, v) for k, v in tags.items()],
        )
        self._client.set_terminated(run.id, "FINISHED" if finished.scored else "FAILED", end_time=ended)
        run.ended = ended

    def confirmed(self, rows: Mapping[str, Scored], text: str, table: str) -> None:
        """Write the leaderboard to the parent, and its rows' confirm scores to their candidates' runs."""
        from mlflow.entities import Metric

        by_recipe = {run.recipe: run for run in self._written.values()}
        for key, scored in rows.items():
            run = by_recipe.get(key)
            if run is not None and not run.is_confirmed:
                values = {"confirm.score": scored.score} | {f"confirm.score.{t}": v for t, v in scored.scores.items()}
                self._client.log_batch(run.id, metrics=[Metric(k, v, run.ended, 0) for k, v in values.items()])
        self._client.log_text(self.parent_id, text, "leaderboard.txt")
        self._client.log_text(self.parent_id, table, "leaderboard.json")

    def end(self, metrics: Mapping[str, float]) -> None:
        """Close the parent run of a search that is complete."""
        from mlflow.entities import Metric

        now = max((run.ended or 0 for run in self._written.values()), default=0)
        self._client.log_batch(self.parent_id, metrics=[Metric(k, v, now, 0) for k, v in metrics.items()])
        self._client.set_terminated(self.parent_id, "FINISHED")

    def close(self) -> None:
        """Close the parent run of a search that did not end by itself; the next run of the study opens it again."""
        self._client.set_terminated(self.parent_id, "KILLED")


def _params(finished: Finished) -> dict[str, Any]:
    recipe = finished.recipe
    params: dict[str, Any] = {}
    for name, value in recipe.as_dict().items():
        if name == "order":
            params |= {"order": ">".join(value)} | {f"rank.{e}": rank for rank, e in enumerate(value, 1)}
        elif isinstance(value, dict):  # λ, and what experts have of their own
            params |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            params[name] = value
    return params


def _metrics(finished: Finished) -> dict[str, float]:
    metrics = {"materialize_seconds": finished.materialize_seconds}
    if (scored := finished.scored) is None:
        return metrics
    metrics |= {"score": scored.score, "items": float(scored.items), "evaluate_seconds": scored.evaluate_seconds}
    metrics |= {f"score.{task}": value for task, value in scored.scores.items()}
    return metrics | {f"loss.{task}": value for task, value in scored.losses.items()}


def newest_parent(uri: str, name: str) -> tuple[str, str] | None:
    """The ids of an experiment and of its newest study's run; None where there is none."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=5000)
    parents = [run for run in runs if STUDY_TAG in run.data.tags]
    return (str(experiment.experiment_id), str(parents[0].info.run_id)) if parents else None
