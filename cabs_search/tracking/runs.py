"""What parent and child runs say, as plain values."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cabs_search.common.versions import installed_version
from cabs_search.search.candidates import method_of
from cabs_search.spec.study import Spec
from cabs_search.spec.task import DataSource

if TYPE_CHECKING:
    from cabs_search.record.outcomes import Bound, Scored
    from cabs_search.search.jobs import Finished


STUDY_TAG, TRIAL_TAG, STATE_TAG, PARENT_TAG = (
    "cabs_search.study",
    "cabs_search.trial",
    "state",
    "mlflow.parentRunId",
)
OF_TAG, COLOR_TAG = "cabs_search.candidate_of", "mlflow.runColor"
COLORS = (
    "#ff7f0e",
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#17becf",
    "#bcbd22",
    "#7f7f7f",
    "#d62728",
)
"""Of candidates in MLflow's charts, by method."""
SHOWN_VERSIONS = ("cabs-search", "torch", "transformers", "ray", "optuna", "mlflow")


@dataclass
class ChildRun:
    """A candidate's run, as much of it as matters here."""

    id: str
    recipe: str | None
    ended: int | None = None
    """Its end in milliseconds; None where it is not written whole."""
    is_confirmed: bool = False


def child_run(run: Any) -> ChildRun:
    ended = run.info.end_time if run.info.status in ("FINISHED", "FAILED") else None
    return ChildRun(
        str(run.info.run_id),
        run.data.tags.get("recipe"),
        ended,
        "confirm.score" in run.data.metrics,
    )


def study_tags(spec: Spec) -> dict[str, str]:
    """What a study is and what it runs on, as tags, which may change from one run to the next."""
    from mlflow.utils.git_utils import get_git_commit

    facts = {
        STATE_TAG: "running",
        "methods": ", ".join(dict.fromkeys((*spec.baselines, *spec.space.method))),
        "mlflow.source.name": "cabs-search",
        "mlflow.source.type": "LOCAL",
        "version.python": sys.version.split()[0],
    }
    facts |= {
        f"version.{package}": found
        for package in SHOWN_VERSIONS
        if (found := installed_version(package))
    }
    commit = get_git_commit(str(Path.cwd()))
    return facts | ({"mlflow.source.git.commit": commit} if commit else {})


def data_set(spec: Spec, bound: Bound) -> Any:
    """Some of a task's items as one of MLflow's data sets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    task = spec.tasks[bound.task]
    kind, source = _source(task.dataset, getattr(task, bound.split).split or task.split)
    made = Dataset(
        bound.task,
        bound.digest,
        kind,
        json.dumps(source),
        profile=json.dumps({"num_rows": bound.items}),
    )
    return DatasetInput(made, [InputTag("mlflow.data.context", bound.split)])


def _source(data: DataSource, split: str | None) -> tuple[str, dict[str, Any]]:
    """A kind of source that MLflow knows, and what it says of one."""
    if data.hub:
        return "hugging_face", {"path": data.hub, "config_name": data.config, "split": split}
    if data.callable:
        return "code", {"tags": {"mlflow.source.name": data.callable}}
    return "local", {"uri": data.csv or data.json or data.parquet}


def table_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows in the form of ``mlflow.log_table``, which would add them to those that are there."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = [[finite_number(row.get(column)) for column in columns] for row in rows]
    return json.dumps(
        {"columns": columns, "data": data}, ensure_ascii=False, allow_nan=False
    ).encode()


def finite_number(value: Any) -> Any:
    """A plain value; None for a number that JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def candidate_params(finished: Finished) -> dict[str, Any]:
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
    """Beginnings, of three letters or as many more as tell names apart: the axis of a chart cuts
    what is long.
    """
    found = {}
    for name in names:
        alone = (
            name[:n]
            for n in range(3, len(name))
            if sum(other.startswith(name[:n]) for other in names) == 1
        )
        found[name] = next(alone, name)
    return found


def candidate_metrics(finished: Finished) -> dict[str, float]:
    metrics = {"materialize_seconds": finished.materialize_seconds}
    if (scored := finished.scored) is None:
        return metrics
    metrics |= {
        "score": scored.score,
        "items": float(scored.items),
        "evaluate_seconds": scored.evaluate_seconds,
    }
    metrics |= {f"score.{task}": value for task, value in scored.scores.items()}
    return metrics | {f"loss.{task}": value for task, value in scored.losses.items()}


@dataclass(frozen=True, kw_only=True)
class SearchProgress:
    """How far a search has come with one more candidate."""

    items: int
    """Search items scored, of all candidates that are complete."""
    best: float
    """The best score so far."""
    ended: int
    """The candidate's end in milliseconds."""

    def after(self, scored: Scored, ended: int) -> SearchProgress:
        """The same with one more candidate."""
        return SearchProgress(
            items=self.items + scored.items, best=max(self.best, scored.score), ended=ended
        )

    def as_metrics(self) -> dict[str, float]:
        """For MLflow."""
        return {"items_spent": float(self.items), "best_score": self.best}


def progress_of(child: Any) -> SearchProgress | None:
    """What was written with a candidate; None where it is not written whole or has no score."""
    metrics = child.data.metrics
    if child.info.end_time is None or not metrics.keys() >= {"items_spent", "best_score"}:
        return None
    return SearchProgress(
        items=int(metrics["items_spent"]), best=metrics["best_score"], ended=child.info.end_time
    )


def color_of(spec: Spec, finished: Finished) -> str:
    """One for each method, so that charts are read without a legend of runs."""
    names = list(
        dict.fromkeys(method_of(spec, name).name for name in (*spec.space.method, *spec.baselines))
    )
    return COLORS[names.index(finished.recipe.method.name) % len(COLORS)]
