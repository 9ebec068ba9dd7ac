"""The best candidate of a study, logged as a model that MLflow loads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cabs_search.common.versions import package_versions
from cabs_search.spec.task import Task
from cabs_search.tracking.failures import is_unanswered
from cabs_search.tracking.study_runs import StudyRuns

MODEL = "best-found"
"""Name of the best candidate among an experiment's models."""
NEEDED_TO_SERVE = ("cabs-search", "torch", "transformers", "numpy", "pandas")
"""Packages that a logged model requires, in the versions that made it."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The best candidate, to be logged as a model that ``serving`` loads."""

    key: str
    """The recipe's key; a model that is logged is not logged again."""
    text: str
    """The recipe in words."""
    tasks: Mapping[str, Task]
    write: Callable[[Path], object]
    """Writes the merged model into a new folder."""
    example: Callable[[], Mapping[str, Any]]
    """Returns a row that the first task reads."""


def write_model(runs: StudyRuns, model: Model, folder: Path) -> None:
    """Log the best candidate, once; delete earlier ones and any that was left half done.

    Args:
        runs: the study's.
        model: what to log.
        folder: for a temporary copy.

    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    if _prune_models(runs, model.key):
        return
    logged = runs.client.create_logged_model(
        runs.experiment_id,
        MODEL,
        runs.parent_id,
        tags={"recipe": model.key},
        params={"recipe": model.text},
    )
    try:
        for left in folder.glob(".model-*"):  # by a driver that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".model-") as temporary:
            save_model(model, Path(temporary), logged)
            runs.client.log_model_artifacts(logged.model_id, f"{temporary}/model")
    except Exception as error:
        if not is_unanswered(error):
            runs.client.delete_logged_model(logged.model_id)
        raise
    runs.client.log_outputs(runs.parent_id, [LoggedModelOutput(logged.model_id, step=0)])
    runs.client.log_batch(runs.parent_id, metrics=_scores(runs, logged.model_id))
    # Last, because a model that is ready is whole.
    runs.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    _prune_models(runs, model.key)


def _prune_models(runs: StudyRuns, recipe: str) -> bool:
    """Delete the study's models except a whole one of this recipe; tell whether there is one."""
    from mlflow.entities import LoggedModelStatus

    is_kept = False
    for logged in runs.client.search_logged_models(
        [runs.experiment_id], filter_string=f"source_run_id = '{runs.parent_id}'"
    ):
        is_whole = logged.status == LoggedModelStatus.READY
        if is_whole and logged.tags.get("recipe") == recipe and not is_kept:
            is_kept = True
        else:
            runs.client.delete_logged_model(logged.model_id)
    return is_kept


def _scores(runs: StudyRuns, model_id: str) -> list[Any]:
    """Return the parent's scores as the model's; with other times, the parent has them twice."""
    from mlflow.entities import Metric

    scores = []
    for key in runs.client.get_run(runs.parent_id).data.metrics:
        if key.startswith(("score", "confirm")):
            history = runs.client.get_metric_history(runs.parent_id, key)
            last = max(history, key=lambda point: point.timestamp)
            scores.append(Metric(key, last.value, last.timestamp, last.step, model_id=model_id))
    return scores


def save_model(model: Model, folder: Path, logged: Any) -> None:
    """Write the model in MLflow's format to ``folder/model``."""
    import mlflow.models
    import pandas as pd
    from mlflow import pyfunc

    model.write(folder / "merged")
    first = next(iter(model.tasks))
    versions = package_versions(NEEDED_TO_SERVE)
    pyfunc.save_model(
        folder / "model",
        loader_module="cabs_search.serving",
        data_path=str(folder / "merged"),
        mlflow_model=mlflow.models.Model(
            artifact_path=logged.artifact_location,
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            model_uuid=logged.model_id,
        ),
        signature=_signature(model.tasks),
        input_example=(pd.DataFrame([model.example()]), {"task": first}),
        pip_requirements=[f"{package}=={version}" for package, version in versions.items()],
    )


def _signature(tasks: Mapping[str, Task]) -> Any:
    """Return inputs (columns that tasks read, all optional), outputs (if alike), params (task)."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    text, listed = DataType.string, Array(DataType.string)
    kinds: dict[str, set[bool]] = {}
    for task in tasks.values():
        for column in task.input_columns:
            kinds.setdefault(column, set()).add(task.kind.reads_lists(task, column))
    types = {
        column: AnyType() if len(has) > 1 else listed if has == {True} else text
        for column, has in kinds.items()
    }
    made = {int: DataType.long, float: DataType.double, str: text, list: listed}
    predicted = [made[task.kind.predicts] for task in tasks.values()]
    are_alike = all(type_ == predicted[0] for type_ in predicted)
    return ModelSignature(
        inputs=Schema([ColSpec(type_, column, required=False) for column, type_ in types.items()]),
        outputs=Schema([ColSpec(predicted[0])]) if are_alike else None,
        params=ParamSchema([ParamSpec("task", text, next(iter(tasks)))]),
    )
