"""Contents of parent and child runs, as plain values."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cabs_search.common.formats import finite
from cabs_search.common.versions import PACKAGES, git, package_versions
from cabs_search.record.entries import Bound
from cabs_search.search.candidates import Candidates
from cabs_search.search.jobs import Finished
from cabs_search.search.objectives.registry import objective_identity
from cabs_search.spec.study import Spec
from cabs_search.spec.task import DataSource, Task

STUDY_TAG = "cabs_search.study"
TRIAL_TAG = "cabs_search.trial"
CANDIDATE_OF_TAG = "cabs_search.candidate_of"
FRONT_TAG = "pareto_front"
"""Tag of candidates on the Pareto front; false once others have driven them off."""
STATE_TAG = "state"
STATUSES = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""MLflow's statuses of candidates, by their state."""
PARENT_TAG = "mlflow.parentRunId"
COLOR_TAG = "mlflow.runColor"
COLORS = (
    *("#ff7f0e", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b"),
    *("#e377c2", "#17becf", "#bcbd22", "#7f7f7f", "#d62728"),
)
"""Colors of candidates in MLflow's charts, one per method."""
MOST_GROUPS = 20
"""Most groups of tensors that a param names; of more it has the number."""


def study_params(spec: Spec) -> dict[str, str]:
    """Return the parent's params: they never change."""
    return {
        "base": spec.base,
        "experts": ", ".join(spec.experts),
        "objective": objective_identity(spec),
        "sampler": spec.search.sampler_used,
        "pruner": spec.search.pruner_used or "none",
        "seed": str(spec.seed),
    }


def study_tags(methods: Sequence[str]) -> dict[str, str]:
    """Return the parent's tags: methods and versions, which another run of the study may change."""
    tags = {
        STATE_TAG: "running",
        "methods": ", ".join(dict.fromkeys(methods)),
        "mlflow.source.name": "cabs-search",
        "mlflow.source.type": "LOCAL",
        "version.python": platform.python_version(),
    }
    tags |= {f"version.{name}": found for name, found in package_versions(PACKAGES).items()}
    commit = git("rev-parse", "HEAD")
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def data_set(task: Task, bound: Bound) -> Any:
    """Return the items of one task and split as one of MLflow's data sets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind, source = _source(task.dataset, getattr(task, bound.split).split or task.split)
    profile = json.dumps({"num_rows": bound.items})
    content = Dataset(bound.task, bound.digest, kind, json.dumps(source), profile=profile)
    return DatasetInput(content, [InputTag("mlflow.data.context", bound.split)])


def _source(data: DataSource, split: str | None) -> tuple[str, dict[str, Any]]:
    """Return a kind of source that MLflow knows, and the fields of that kind."""
    if data.hub:
        return "hugging_face", {"path": data.hub, "config_name": data.config, "split": split}
    if data.callable or data.harness:
        name = data.callable or f"lm-evaluation-harness: {data.harness}"
        return "code", {"tags": {"mlflow.source.name": name}}
    return "local", {"uri": data.csv or data.json or data.parquet}


def table_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows in the format of ``mlflow.log_table``, which itself would append to a table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = finite([[row.get(column) for column in columns] for row in rows])
    table = {"columns": columns, "data": data}
    return json.dumps(table, ensure_ascii=False, allow_nan=False).encode()


def candidate_params(finished: Finished) -> dict[str, str]:
    """Return a child's params: the recipe, one param per setting and expert."""
    params: dict[str, Any] = {}
    for name, value in finished.recipe.as_dict().items():
        if name == "order":
            short = _short_names(value)
            params |= {"order": ">".join(value), "order_short": ">".join(short[e] for e in value)}
            params |= {f"rank.{e}": rank for rank, e in enumerate(value, 1)}
        elif name == "groups":
            names = [group for group, _ in value]
            params[name] = ", ".join(names) if len(names) <= MOST_GROUPS else f"{len(names)}"
        elif name == "stack":
            params[name] = finished.recipe.stack_text
        elif isinstance(value, dict):  # λ, and settings that each expert has
            params |= {f"{name}.{key}": setting for key, setting in value.items()}
        else:
            params[name] = value
    return {name: str(value) for name, value in params.items()}


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique prefixes, of three letters or more: charts cut long labels."""
    short = {}
    for name in names:
        short[name] = name
        for prefix in (name[:length] for length in range(3, len(name))):
            if sum(other.startswith(prefix) for other in names) == 1:
                short[name] = prefix
                break
    return short


def candidate_name(number: int, params: Mapping[str, str]) -> str:
    """Return a child's name in MLflow's table of runs."""
    shown = [value for name, value in params.items() if name in ("method", "nm", "density")]
    return " ".join([str(number), *shown])


def candidate_metrics(finished: Finished) -> dict[str, float]:
    """Return a child's metrics: without a score unless it is complete."""
    metrics = {"materialize_seconds": finished.materialize_seconds}
    if finished.partial_score is not None:
        metrics |= {"partial_score": finished.partial_score, "items": float(finished.items)}
    if (scored := finished.scored) is None:
        return metrics
    items, seconds = float(scored.items), scored.evaluate_seconds
    metrics |= {"score": scored.score, "items": items, "evaluate_seconds": seconds}
    metrics |= {"objective": scored.rank} if len(scored.values) == 1 else {}
    metrics |= {f"score.{task}": value for task, value in scored.scores.items()}
    return metrics | {f"loss.{task}": value for task, value in scored.losses.items()}


class SearchProgress(NamedTuple):
    """Progress of a search when a candidate has ended."""

    items: int = 0
    """Search items scored, summed over candidates that have ended and not failed."""
    best: float = float("-inf")
    """Best score, or objective, so far."""
    ended: int = 0
    """The candidate's end in milliseconds."""

    def after(self, finished: Finished, ended: int) -> SearchProgress:
        """Return the progress with one more candidate."""
        score = finished.scored.rank if finished.scored else self.best
        return SearchProgress(self.items + finished.items, max(self.best, score), ended)

    def as_metrics(self) -> dict[str, float]:
        """Return the progress as MLflow's metrics."""
        return {"items_spent": float(self.items), "best_score": self.best}


def colors_of(candidates: Candidates) -> dict[str, str]:
    """Return the color of each method's candidates, so that charts need no legend of runs."""
    names = (*candidates.space.method, *candidates.baselines)
    methods = dict.fromkeys(candidates.method(name).name for name in names)
    return dict(zip(methods, itertools.cycle(COLORS), strict=False))
