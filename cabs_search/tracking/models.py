"""The best found as a model that MLflow loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cabs_search.common.versions import installed_version
from cabs_search.spec.task import Task

MODEL = "best-found"
"""What the best found is called among an experiment's models."""
NEEDED_TO_SERVE = ("cabs-search", "torch", "transformers", "numpy", "pandas")
"""What a logged model asks for, in the versions that made it."""


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


def save_model(model: Model, folder: Path, made: Any) -> None:
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
        pip_requirements=[
            f"{package}=={found}"
            for package in NEEDED_TO_SERVE
            if (found := installed_version(package))
        ],
    )


def _signature(tasks: Mapping[str, Task]) -> Any:
    """Every column that some task reads, none of them required, and the task's name; predictions if
    all are alike.
    """
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
    return ModelSignature(
        inputs=Schema([ColSpec(type_, column, required=False) for column, type_ in types.items()]),
        outputs=Schema([ColSpec(predicted[0])])
        if all(each == predicted[0] for each in predicted)
        else None,
        params=ParamSchema([ParamSpec("task", text, next(iter(tasks)))]),
    )
