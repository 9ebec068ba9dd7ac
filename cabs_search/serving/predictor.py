"""A merged model with its tasks, as MLflow loads it: rows go in, and what comes out is what the
search recorded.

``mlflow.pyfunc.load_model(URI).predict(rows, params={"task": NAME})``: rows as a pandas DataFrame
with the columns that the task reads, without labels. MLflow finds ``_load_pyfunc`` by this module's
name; nothing here imports MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from cabs_search.kinds.kinds import columns_of, head_of, no_label, texts_of, tokenizer_arguments
from cabs_search.scoring.forward import evaluate
from cabs_search.scoring.models import pick_device
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task
from cabs_search.tasks.dataset import Row
from cabs_search.tasks.items import tokenize

if TYPE_CHECKING:
    from pandas import DataFrame


TASKS = "tasks.json"
"""The file that says what the heads beside it are for."""


def write_tasks(spec: Spec, folder: Path) -> None:
    """Add to an exported model what ``Served`` must know of its tasks."""
    plain = {
        name: TypeAdapter(Task).dump_python(task, mode="json") for name, task in spec.tasks.items()
    }
    (folder / TASKS).write_text(
        json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def inputs_of(task: Task) -> list[str]:
    """The columns that a task reads."""
    return [column for field, column in columns_of(task) if field in ("text", "choices")]


def reads_lists(task: Task, column: str) -> bool:
    """Whether a column holds a list of texts in each row: words, or choices."""
    return task.kind == "token-classification" or column == task.choices


class Served:
    """Every task's model on one trunk, each loaded when it is first asked for."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        """Open what ``export(..., compact=True)`` and ``write_tasks`` have written."""
        self._folder, self._device = folder, torch.device(pick_device(device))
        self.tasks = TypeAdapter(dict[str, Task]).validate_json(
            (folder / TASKS).read_text(encoding="utf-8")
        )
        self._trunks: dict[tuple[str, str], Tensor] = {}
        self.loaded = cache(self._load)
        """A task's model, its configuration and its tokenizer."""

    def predict(self, data: DataFrame, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Predictions, one a row: class numbers, numbers, choices' places, answers, or the names of
        words' classes.

        Args:
            data: the columns that the task reads; others are left alone.
            params: ``task``: which one; needed where there are several.

        Raises:
            ValueError: no such task or column, or a column holds something else than the task
                reads.

        """
        name = (params or {}).get("task") or next(iter(self.tasks))
        if name not in self.tasks:
            raise ValueError(
                f"params.task: a task must be one of {', '.join(self.tasks)}, but got {name}"
            )
        task = self.tasks[name]
        if missing := [column for column in inputs_of(task) if column not in data.columns]:
            raise ValueError(
                f"{name}: no column {missing[0]}; the data has {', '.join(map(str, data.columns))}"
            )
        if data.empty:
            return []
        model, config, tokenizer = self.loaded(name)
        texts = [
            texts_of(name, task, _plain(row)) for row in data[inputs_of(task)].to_dict("records")
        ]
        items = tokenize(
            name, tokenizer, config, task, [Row(each, no_label(task, each)) for each in texts]
        )
        found: list[Any] = evaluate(
            model, items, np.arange(len(items)), self._device
        ).predictions.tolist()
        return found

    def _load(self, name: str) -> tuple[Any, Any, Any]:
        import transformers

        folder, task = self._folder / "heads" / name, self.tasks[name]
        auto: Any = getattr(transformers, f"AutoModel{head_of(task.kind)}")
        model = auto.from_pretrained(folder, dtype="auto").eval().to(self._device)
        files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        for tensor_name, tensor in model.state_dict(keep_vars=True).items():
            if (file := files.get(tensor_name, "")).startswith(
                ".."
            ):  # the trunk's, which all heads share
                tensor.data = self._trunks.setdefault((file, tensor_name), tensor.data)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, **tokenizer_arguments(task, model.config)
        )
        return model, model.config, tokenizer


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with lists where a DataFrame may have arrays."""
    return {column: v.tolist() if isinstance(v, np.ndarray) else v for column, v in row.items()}
