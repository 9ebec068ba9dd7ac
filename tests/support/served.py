"""Predictions of a logged model in a fresh process, beside those on record."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any


def served(folder: Path, model_id: str) -> dict[str, tuple[Any, Any]]:
    """Return (predictions, metric) of a study's model and of the record, by task."""
    command = [sys.executable, "-m", "tests.support.served", str(folder), model_id]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    said: dict[str, tuple[Any, Any]] = json.loads(found.stdout)
    return {task: (both[0], both[1]) for task, both in said.items()}


def main(folder: Path, model_id: str) -> None:
    """Print what ``served`` returns as JSON."""
    import mlflow
    import pandas as pd

    from cabs_search.spec.load import load
    from cabs_search.tracking.server import default_uri
    from tests.support.records import record_of

    mlflow.set_tracking_uri(default_uri(folder))
    model = mlflow.pyfunc.load_model(f"models:/{model_id}")
    spec, outcomes = load(folder / "spec.yaml"), record_of(folder)
    recorded = outcomes.scored("confirm")[
        mlflow.MlflowClient().get_logged_model(model_id).tags["recipe"]
    ]
    labels, said = outcomes.labels("confirm"), {}
    for name, task in spec.tasks.items():
        found = model.predict(
            pd.DataFrame(rows_of(spec, name, outcomes.path)), params={"task": name}
        )
        score = task.measure.compute(task.kind.values(found), labels[name])
        said[name] = (
            (found, score),
            (recorded.tasks[name].predictions.tolist(), recorded.scores[name]),
        )
    print(json.dumps(said))


def rows_of(spec: Any, name: str, record: Path) -> list[dict[str, Any]]:
    """Return a task's confirm rows in the record's order, with the columns for a prediction."""
    from transformers import AutoConfig

    from cabs_search.tasks.dataset import Row, read_dataset

    task, config, rows = (
        spec.tasks[name],
        AutoConfig.from_pretrained(spec.experts.get(spec.expert_of(name), spec.base)),
        {},
    )
    for row in read_dataset(name, task, task.confirm.split or task.split):
        texts = task.kind.texts(name, task, row)
        key = Row(texts, task.kind.label(name, task, config, texts, row.get(task.label))).key
        rows[key] = {column: row[column] for column in task.input_columns}
    asked = "SELECT item FROM items WHERE split = 'confirm' AND task = ? ORDER BY position"
    with closing(sqlite3.connect(record)) as db:
        return [rows[key] for (key,) in db.execute(asked, (name,))]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
