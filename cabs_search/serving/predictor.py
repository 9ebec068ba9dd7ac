"""A merged model with its tasks, as MLflow loads it: rows in, the search's predictions out.

``mlflow.pyfunc.load_model(URI).predict(rows, params={"task": NAME})``: rows as a pandas DataFrame
with the columns that the task reads, without labels. MLflow finds ``_load_pyfunc`` by the package's
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

from cabs_search.scoring.forward import evaluate
from cabs_search.scoring.models import pick_device
from cabs_search.spec.task import Task
from cabs_search.tasks.dataset import Row
from cabs_search.tasks.items import tokenize

if TYPE_CHECKING:
    from pandas import DataFrame

TASKS_FILE = "tasks.json"


def write_tasks(tasks: Mapping[str, Task], folder: Path) -> None:
    """Add to an exported model the tasks of its heads, for ``Served``."""
    plain = TypeAdapter(dict[str, Task]).dump_python(dict(tasks), mode="json")
    text = json.dumps(plain, indent=2, ensure_ascii=False)
    (folder / TASKS_FILE).write_text(text + "\n", encoding="utf-8")


class Served:
    """Every task's model on one trunk, each loaded when it is first asked for."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        """Open what ``export(..., compact=True)`` and ``write_tasks`` have written."""
        self._folder, self._device = folder, torch.device(pick_device(device))
        self.tasks = TypeAdapter(dict[str, Task]).validate_json(
            (folder / TASKS_FILE).read_text(encoding="utf-8")
        )
        self._trunks: dict[tuple[str, str], Tensor] = {}
        self.loaded = cache(self._load)
        """A task's model, its config and its tokenizer, by the task's name."""

    def predict(self, data: DataFrame, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Return one prediction per row, of the type that the task's kind predicts.

        Args:
            data: the columns that the task reads; others are ignored.
            params: ``task``: its name; None: the first task.

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
        columns, kind = task.input_columns, task.kind
        if missing := [column for column in columns if column not in data.columns]:
            raise ValueError(
                f"{name}: no column {missing[0]}; the data has {', '.join(map(str, data.columns))}"
            )
        if data.empty:
            return []
        model, config, tokenizer = self.loaded(name)
        texts = [kind.texts(name, task, _plain(row)) for row in data[columns].to_dict("records")]
        # Predictions do not depend on labels.
        rows = [Row(each, kind.placeholder_label(each)) for each in texts]
        items = tokenize(name, tokenizer, config, task, rows)
        outcome = evaluate(model, items, np.arange(len(items)), self._device)
        return list(outcome.predictions.tolist())

    def _load(self, name: str) -> tuple[Any, Any, Any]:
        import transformers

        kind, folder = self.tasks[name].kind, self._folder / "heads" / name
        if kind.is_causal:  # one model for all such tasks
            folder = self._folder
            first = next(other for other, task in self.tasks.items() if task.kind.is_causal)
            if name != first:
                return self.loaded(first)
        auto: Any = getattr(transformers, f"AutoModel{kind.head}")
        model = auto.from_pretrained(folder, dtype="auto", trust_remote_code=False)
        model = model.eval().to(self._device)
        index = folder / "model.safetensors.index.json"
        files = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
        for tensor_name, tensor in model.state_dict(keep_vars=True).items():
            file = files.get(tensor_name, "")
            if file.startswith(".."):  # a trunk's, which all heads share
                tensor.data = self._trunks.setdefault((file, tensor_name), tensor.data)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, **kind.tokenizer_arguments(model.config)
        )
        return model, model.config, tokenizer


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with lists in place of a DataFrame's arrays."""
    return {column: v.tolist() if isinstance(v, np.ndarray) else v for column, v in row.items()}
