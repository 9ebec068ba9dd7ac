"""Writes to the runs of a study; each of them, done twice, leaves what it leaves once.

A candidate's metrics carry its own end as their time, and the parent's are written only where they
have changed: MLflow keeps one point for equal values of one time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from cabs_search.record.entries import Bound, Scored
from cabs_search.search.candidates import Candidates
from cabs_search.search.jobs import Finished
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task
from cabs_search.tracking import views
from cabs_search.tracking.runs import (
    CANDIDATE_OF_TAG,
    COLOR_TAG,
    FRONT_TAG,
    PARENT_TAG,
    STATE_TAG,
    STATUSES,
    TRIAL_TAG,
    candidate_metrics,
    candidate_name,
    candidate_params,
    data_set,
    study_tags,
)
from cabs_search.tracking.server import version_at
from cabs_search.tracking.study_runs import ChildRun, StudyRuns


def write_study(runs: StudyRuns, params: Mapping[str, str], methods: Sequence[str]) -> None:
    """Reopen the parent and write params that it lacks, and tags."""
    runs.client.update_run(runs.parent_id, status="RUNNING")
    known = runs.client.get_run(runs.parent_id).data.params
    new = {key: value for key, value in params.items() if key not in known}
    _log(runs, runs.parent_id, params=new, tags=study_tags(methods))


def write_data_sets(runs: StudyRuns, tasks: Mapping[str, Task], items: Iterable[Bound]) -> None:
    """Write what is scored as the parent's data sets."""
    data_sets = [data_set(tasks[bound.task], bound) for bound in items]
    runs.client.log_inputs(runs.parent_id, datasets=data_sets)


def write_views(runs: StudyRuns, spec: Spec, comparison: str | None) -> None:
    """Write saved views of the study and, if it is a value of one, of its comparison.

    Raises:
        RuntimeError: the MLflow there is too old to show them.

    """
    version = version_at(runs.client.tracking_uri)
    if not views.are_read_by(version):
        raise RuntimeError(f"version {version} has none, {'.'.join(map(str, views.SINCE))} has")
    candidates, tasks = Candidates.of(spec), tuple(spec.tasks)
    kind: views.Kind = "study" if comparison is None else "value"
    made = views.made_for(kind, candidates, tasks, runs.parent_id, spec.name)
    if comparison is not None:
        made += views.made_for("comparison", candidates, tasks, runs.study_id.record, comparison)
    known = runs.client.get_experiment(runs.experiment_id).tags
    for key, value in (view.tag for view in made):
        if known.get(key) != value:
            runs.client.set_experiment_tag(runs.experiment_id, key, value)


def write_candidate(runs: StudyRuns, finished: Finished, color: str) -> None:
    """Write a candidate as a child, unless it is written whole.

    Candidates must come in the order in which they ended.
    """
    child = runs.children.get(finished.number)
    if child is not None and child.ended is not None:
        return
    started, ended = (int(at.timestamp() * 1000) for at in (finished.started, finished.ended))
    params, metrics = candidate_params(finished), candidate_metrics(finished)
    tags = {STATE_TAG: finished.state} | ({"error": finished.error} if finished.error else {})
    if child is None:
        identity = {
            PARENT_TAG: runs.parent_id,
            TRIAL_TAG: str(finished.number),
            "recipe": finished.recipe.key,
            CANDIDATE_OF_TAG: str(runs.study_id),
            COLOR_TAG: color,
        }
        created = runs.client.create_run(
            runs.experiment_id,
            start_time=started,
            tags=tags | identity,
            run_name=candidate_name(finished.number, params),
        )
        child = ChildRun(str(created.info.run_id), finished.recipe.key)
        runs.children[finished.number] = child
    if value := runs.study_id.value:
        params["value"] = value
    progress = runs.progress
    if finished.state != "failed":
        progress = progress.after(finished, ended)
        metrics |= progress.as_metrics()
    _log(runs, child.id, metrics=metrics, at=ended, params=params, tags=tags)
    runs.client.set_terminated(child.id, STATUSES[finished.state], end_time=ended)
    child.ended, runs.has_new = ended, True
    if finished.state != "failed":
        runs.progress = progress
        runs.untold.append(progress)


def write_progress(runs: StudyRuns) -> None:
    """Write progress that the parent lacks, as the history that charts draw a line of."""
    from mlflow.entities import Metric

    points = [
        Metric(key, value, progress.ended, progress.items)
        for progress in runs.untold
        for key, value in progress.as_metrics().items()
    ]
    runs.client.log_batch(runs.parent_id, points)
    runs.untold = []


def write_confirmed(runs: StudyRuns, confirmed: Mapping[str, Scored]) -> None:
    """Write scores on the confirm split, by the recipe's key, to the candidates' runs."""
    by_recipe = {child.recipe: child for child in runs.children.values()}
    for key, scored in confirmed.items():
        child = by_recipe.get(key)
        if child is not None and child.ended is not None:
            values = {"confirm.score": scored.score}
            values |= {f"confirm.score.{task}": score for task, score in scored.scores.items()}
            _log(runs, child.id, metrics=values, at=child.ended)


def write_front(runs: StudyRuns, front: Collection[str]) -> None:
    """Tag the candidates on the Pareto front, by the recipe's key, and those that have left it."""
    for child in runs.children.values():
        is_on = child.recipe in front
        if is_on != child.on_front:
            runs.client.set_tag(child.id, FRONT_TAG, "true" if is_on else "false")
            child.on_front = is_on


def write_metrics(runs: StudyRuns, metrics: Mapping[str, float]) -> None:
    """Write those of the parent's metrics that have changed."""
    known = runs.client.get_run(runs.parent_id).data.metrics
    changed = {key: value for key, value in metrics.items() if known.get(key) != value}
    _log(runs, runs.parent_id, metrics=changed, at=runs.now())


def write_files(runs: StudyRuns, files: Mapping[str, bytes]) -> None:
    """Write the parent's artifacts, by path."""
    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            to = Path(folder) / path
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)
        runs.client.log_artifacts(runs.parent_id, folder)


def write_note(runs: StudyRuns, note: str, tables: Sequence[str]) -> None:
    """Write the parent's description, and which of its artifacts MLflow's UI shows as tables."""
    listed = json.dumps([{"path": path, "type": "table"} for path in tables])
    _log(runs, runs.parent_id, tags={"mlflow.note.content": note, "mlflow.loggedArtifacts": listed})


def merge_doubles(runs: StudyRuns) -> None:
    """Give children of doubled parents to the parent, and delete runs that are there twice."""
    for run_id in runs.strays:
        runs.client.set_tag(run_id, PARENT_TAG, runs.parent_id)
    for run_id in runs.doubles:
        runs.client.delete_run(run_id)
    runs.strays, runs.doubles = [], []


def close(runs: StudyRuns, *, is_complete: bool) -> None:
    """Close the parent; another run of the study opens it again.

    A study that was complete, and has no new candidate, keeps the time at which it ended.
    """
    state, status = ("complete", "FINISHED") if is_complete else ("stopped", "KILLED")
    is_as_it_was = is_complete and runs.finished_at is not None and not runs.has_new
    ended = runs.finished_at if is_as_it_was else runs.now()
    runs.client.set_tag(runs.parent_id, STATE_TAG, state)
    runs.client.set_terminated(runs.parent_id, status, end_time=ended)


def _log(
    runs: StudyRuns,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    at: int = 0,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write metrics of one time in milliseconds, params and tags to a run."""
    from mlflow.entities import Metric, Param, RunTag

    runs.client.log_batch(
        run_id,
        [Metric(key, value, at, 0) for key, value in (metrics or {}).items()],
        [Param(key, value) for key, value in (params or {}).items()],
        [RunTag(key, value) for key, value in (tags or {}).items()],
    )
