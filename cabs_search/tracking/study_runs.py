"""Runs of one study in MLflow: found again by their tags, made where there are none.

A request that made a run may have succeeded although its answer was lost, so after every outage
the runs are looked up again before anything more is written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cabs_search.common.files import use_write_ahead_log
from cabs_search.record.folder import StudyFolder, StudyId
from cabs_search.tracking.runs import (
    FRONT_TAG,
    PARENT_TAG,
    STATUSES,
    STUDY_TAG,
    TRIAL_TAG,
    SearchProgress,
)
from cabs_search.tracking.server import connect, default_uri, is_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags by which MLflow's UI shows runs and models instead of what language models need."""


@dataclass
class ChildRun:
    """The run of one candidate."""

    id: str
    recipe: str | None
    """The recipe's key."""
    ended: int | None = None
    """End in milliseconds; None while it is not written whole."""
    on_front: bool = False
    """True if its tag says that it is on the Pareto front."""


@dataclass(kw_only=True)
class StudyRuns:
    """The parent run of a study and its candidates' runs, as known since they were looked up."""

    client: MlflowClient
    study_id: StudyId
    experiment_id: str
    kept_at: str | None
    """Location of artifacts; None: the server has just chosen one."""
    parent_id: str
    finished_at: int | None
    """End of the parent in milliseconds, if the study was complete."""
    latest: int
    """Latest time in milliseconds that the parent has."""
    children: dict[int, ChildRun]
    """Runs by the candidate's number."""
    strays: list[str]
    """Children of doubled parents."""
    doubles: list[str]
    """Runs that are there twice."""
    progress: SearchProgress
    untold: list[SearchProgress]
    """Progress that the parent may lack; a point that is written again stays one point."""
    has_new: bool = False
    """True once a candidate was written."""

    def now(self) -> int:
        """Return the time in milliseconds, after what is written though the clock was set back.

        MLflow takes the metric of the latest time for the present one.
        """
        ends = (child.ended or 0 for child in self.children.values())
        self.latest = max(int(time.time() * 1000), self.latest + 1, *ends, 0)
        return self.latest


def find_runs(
    folder: Path,
    uri: str | None,
    study_id: StudyId,
    name: str,
    experiment: str,
    artifacts: str | None = None,
) -> StudyRuns:
    """Find the runs of a study; make its experiment and its parent run if there are none.

    Args:
        folder: the study's; it keeps artifacts unless an MLflow server does.
        uri: tracking URI; None: SQLite in ``folder``.
        study_id: value of the tag by which the parent is found.
        name: name of a new parent.
        experiment: name of the experiment.
        artifacts: location of a new experiment's artifacts; None: ``folder``, or the server's.

    """
    own = StudyFolder(folder)
    client = connect(uri or default_uri(folder))
    if uri is None:
        use_write_ahead_log(own.tracking_database)
    if artifacts is None and (uri is None or is_database(uri)):
        artifacts = own.artifacts.resolve().as_uri()
    experiment_id, kept_at = _find_experiment(client, experiment, artifacts)
    parents = sorted(_search(client, experiment_id, STUDY_TAG, str(study_id)), key=_start)
    if not parents:
        tags = {STUDY_TAG: str(study_id)}
        parents = [client.create_run(experiment_id, run_name=name, tags=tags)]
    parent_id = str(parents[0].info.run_id)
    is_finished = parents[0].info.status == "FINISHED"

    children: dict[int, Any] = {}
    strays, doubles = [], [str(run.info.run_id) for run in parents[1:]]
    runs = [
        run
        for parent in parents
        for run in _search(client, experiment_id, PARENT_TAG, parent.info.run_id)
        if TRIAL_TAG in run.data.tags
    ]
    for run in sorted(runs, key=lambda run: (_end(run) is None, _start(run))):
        if children.setdefault(int(run.data.tags[TRIAL_TAG]), run) is not run:
            doubles.append(run.info.run_id)
        elif run.data.tags[PARENT_TAG] != parent_id:
            strays.append(run.info.run_id)
    told = sorted(filter(None, map(_progress, children.values())))
    return StudyRuns(
        client=client,
        study_id=study_id,
        experiment_id=experiment_id,
        kept_at=kept_at,
        parent_id=parent_id,
        finished_at=parents[0].info.end_time if is_finished else None,
        latest=max(_start(parents[0]), parents[0].info.end_time or 0),
        children={
            number: ChildRun(
                str(run.info.run_id),
                run.data.tags.get("recipe"),
                _end(run),
                run.data.tags.get(FRONT_TAG) == "true",
            )
            for number, run in children.items()
        },
        strays=strays,
        doubles=doubles,
        progress=told[-1] if told else SearchProgress(),
        untold=told,
    )


def _find_experiment(
    client: MlflowClient, name: str, artifacts: str | None
) -> tuple[str, str | None]:
    """Return an experiment's id and the location of its artifacts.

    It is made, with its artifacts at that location, if there is none.
    """
    known = client.get_experiment_by_name(name)
    if known is None:
        made = client.create_experiment(name, artifact_location=artifacts, tags=EXPERIMENT_TAGS)
        return str(made), artifacts
    if known.lifecycle_stage == "deleted":  # and its name cannot be given to another
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id), str(known.artifact_location)


def _search(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[Any]:
    """Return all runs of an experiment that have a tag."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=token
        )
        runs += page
        if not (token := page.token):
            return runs


def _start(run: Any) -> int:
    return int(run.info.start_time)


def _end(run: Any) -> int | None:
    """Return a candidate's end in milliseconds; None if its run is not written whole."""
    return run.info.end_time if run.info.status in STATUSES.values() else None


def _progress(run: Any) -> SearchProgress | None:
    """Return the progress kept with a candidate; None if it has no score or is not whole."""
    metrics = run.data.metrics
    if run.info.end_time is None or not metrics.keys() >= {"items_spent", "best_score"}:
        return None
    return SearchProgress(int(metrics["items_spent"]), metrics["best_score"], run.info.end_time)
