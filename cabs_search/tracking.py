"""MLflow: one parent run a study, one child a candidate. The only importer of mlflow; only the driver writes.

Children are found again by their tags, so that a restart repeats nothing and completes what a killed driver left.
Metrics carry the candidate's own end as their time, so that writing one twice is writing it once.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from cabs_search import views
from cabs_search.baselines import method_of
from cabs_search.spec import Spec

if TYPE_CHECKING:
    from cabs_search.outcomes import Scored
    from cabs_search.search.study import Finished

STUDY_TAG, TRIAL_TAG, STATE_TAG, PARENT_TAG = "cabs_search.study", "cabs_search.trial", "state", "mlflow.parentRunId"
OF_TAG, COLOR_TAG = "cabs_search.candidate_of", "mlflow.runColor"
COLORS = ("#ff7f0e", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f", "#d62728")
"""Of candidates in MLflow's charts, by method."""
SERVER_FILE = "tracking-uri.txt"
POINTS = 10
"""Candidates after which the parent is told how far the search has come."""
MOST_METRICS = 1000
"""Metrics that MLflow takes at once."""
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a search does not wait minutes for a dead server
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # what is printed there is ours


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
    parts = urlsplit(uri)
    kept.write_text(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() + "\n", encoding="utf-8")


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
        _remember(folder, uri)
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
        self._save_views(study_id, comparison=experiment)
        children = self._search(f"tags.`{PARENT_TAG}` = '{self.parent_id}'")
        self._written = {int(r.data.tags[TRIAL_TAG]): _known(r) for r in children if TRIAL_TAG in r.data.tags}
        self._study_id = study_id
        found = sorted(filter(None, map(_progress_of, children)), key=lambda progress: progress.items)
        self._progress = found[-1] if found else _Progress(items=0, best=float("-inf"), ended=0)
        self._unwritten = found  # on the parent, as far as is known; a point that is written again is the same point

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

    def _save_views(self, study_id: str, comparison: str | None) -> None:
        """Write the saved views of the study, or of the comparison it is a value of, where MLflow reads them."""
        version = _version_at(self.uri)
        if not views.are_read_by(version):
            needed = ".".join(map(str, views.SINCE))
            warnings.warn(
                f"MLflow {version} has no saved views, {needed} has: none are written; runs can be browsed as a table",
                stacklevel=1,
            )
            return
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
            self._write_progress()

    def _write_progress(self) -> None:
        """Write how far the search has come to the parent, as a history that a line is drawn from."""
        from mlflow.entities import Metric

        for begin in range(0, len(self._unwritten), MOST_METRICS // 2):
            points = self._unwritten[begin : begin + MOST_METRICS // 2]
            made = [Metric(k, v, p.ended, p.items) for p in points for k, v in p.as_metrics().items()]
            self._client.log_batch(self.parent_id, metrics=made)
        self._unwritten = []

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

        self._write_progress()
        now = max((run.ended or 0 for run in self._written.values()), default=0)
        self._client.log_batch(self.parent_id, metrics=[Metric(k, v, now, 0) for k, v in metrics.items()])
        self._client.set_terminated(self.parent_id, "FINISHED")

    def close(self) -> None:
        """Close the parent run of a search that did not end by itself; the next run of the study opens it again."""
        self._write_progress()
        self._client.set_terminated(self.parent_id, "KILLED")


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
