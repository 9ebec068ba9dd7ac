"""Tasks of lm-evaluation-harness: found by name, described, and opened with their data.

This is the only module that imports lm_eval, which the extra ``llm`` installs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cabs_search.common.formats import first_line
from cabs_search.kinds.causal import Causal
from cabs_search.kinds.choices_by_likelihood import CHOICES_BY_LIKELIHOOD
from cabs_search.kinds.generation import GENERATION
from cabs_search.kinds.greedy_continuation import GREEDY_CONTINUATION
from cabs_search.kinds.language_modeling import LANGUAGE_MODELING
from cabs_search.kinds.right_choices import RIGHT_CHOICES
from cabs_search.metrics.scored import POOLED
from cabs_search.spec.harness_generation import Texts, texts_of
from cabs_search.spec.harness_groups import members_of
from cabs_search.spec.locations import UnreachableError
from cabs_search.spec.task import DataSource

VERSION = "0.4.13"
"""The only version whose tasks are read: its interface is not stable."""
KINDS: Mapping[str, Causal] = {
    "multiple_choice": CHOICES_BY_LIKELIHOOD,
    "loglikelihood": GREEDY_CONTINUATION,
    "loglikelihood_rolling": LANGUAGE_MODELING,
    "generate_until": GENERATION,
}
"""Kind of task by the harness's ``output_type``."""
PREFERRED = ("acc_norm", "acc", "acc_bytes")
"""Metrics of choices and continuations that are computed here, the default first."""
SIZED_BY_BYTES = ("byte_perplexity", "bits_per_byte")
"""Metrics of rolling log-likelihoods that ``byte_probability`` says in another way."""
LOCAL_BUILDERS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")
"""Values of ``dataset_path`` that need no hub."""
OF_DATA = (
    *("training_split", "validation_split", "fewshot_split", "fewshot_config", "num_fewshot"),
    *("process_docs", "dataset_kwargs"),
)
"""Fields of a task's YAML that only its data needs."""
TASK_LINE = re.compile(r"""^["']?task["']?: *["']?([^\s"'#]+)["']? *(#.*)?$""", re.MULTILINE)
GROUP_LINE = re.compile(r"""^["']?group["']?:""", re.MULTILINE)
POOLING = "agg_inst_level_acc"
"""Function of a task's own that takes the mean over the parts of all documents."""
_SCORERS: dict[tuple[str, str | None], Any] = {}


@dataclass(frozen=True, kw_only=True)
class Described:
    """A task of the harness as a spec names it."""

    kind: Causal
    metrics: tuple[str, ...]
    """The task's own metrics that are computed here, the default first."""
    texts: Texts | None = None
    """Settings of the task's texts, if it generates any."""

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a task of a spec that the harness gives a default."""
        found: dict[str, Any] = {"kind": self.kind.name, "metric": self.metrics[0]}
        if self.texts:
            found |= {"stop": self.texts.stop, "max_new_tokens": self.texts.max_new_tokens}
        return found


def describe(where: str, source: DataSource) -> Described:
    """Read the YAML of a task, or of each of a group or under a tag, without the data.

    Args:
        where: start of errors, such as ``tasks.arc``.
        source: names the task, group or tag.

    Raises:
        UnreachableError: lm-evaluation-harness is not installed.
        ValueError: it has no such task, or one whose scores cannot be computed here; or members of
            a group are not scored alike.

    """
    names = members(where, source)
    first, *others = (_describe(where, replace(source, harness=name)) for name in names)
    metrics = first.metrics
    for name, other in zip(names[1:], others, strict=True):
        metrics = tuple(metric for metric in metrics if metric in other.metrics)
        if (other.kind, other.texts) != (first.kind, first.texts) or not metrics:
            raise ValueError(
                f"{where}.dataset.harness: members of {source.harness} must be scored alike, but"
                f" {name} is not as {names[0]} is; name them one by one"
            )
    return replace(first, metrics=metrics)


def members(where: str, source: DataSource) -> tuple[str, ...]:
    """Return the names of a group's tasks, or of those under a tag; of a task, its own.

    Raises:
        UnreachableError, ValueError: as of ``describe``.

    """
    field, name = f"{where}.dataset.harness", str(source.harness)
    _check_installed(field)
    if name in _files(source.include):
        found: tuple[str, ...] = (name,)
    else:
        found = _members(field, name, source.include)
    if source.average and len(found) == 1:
        raise ValueError(f"{where}.dataset.average: goes with a group, but {name} is a task")
    return found


def _members(field: str, name: str, include: str | None) -> tuple[str, ...]:
    """Search a name in the folder's index, then in the harness's, which takes half a minute."""
    for has_own in (False, True) if include else (True,):
        with suppress(KeyError):
            return members_of(field, name, _index(include, has_own))
    raise ValueError(f"{field}: lm-evaluation-harness {VERSION} has no task {name}")


@cache
def _index(include: str | None, has_own: bool) -> Mapping[str, Any]:
    """Return the harness's entries by name; ``has_own``: also its own ones."""
    from lm_eval.tasks import TaskManager

    index: Mapping[str, Any] = TaskManager(
        include_path=include, include_defaults=has_own
    ).task_index
    return index


def _describe(where: str, source: DataSource) -> Described:
    name = source.harness
    _, config = _entry(where, source)
    output, field = config.get("output_type", "generate_until"), f"{where}.dataset.harness"
    if output not in KINDS:
        raise ValueError(f"{field}: a task must be {' or '.join(KINDS)}, but {name} is {output}")
    kind, process = KINDS[output], config.get("process_results")
    keys = ("doc_to_image", "doc_to_audio", *(() if kind.generates else ("filter_list",)))
    refused = [key for key in keys if config.get(key)]
    if refused:
        raise ValueError(f"{field}: a task must have no {refused[0]}, but {name} has one")
    if source.num_fewshot and config.get("num_fewshot") == 0:
        raise ValueError(
            f"{where}.dataset.num_fewshot: must be 0, which {name} is fixed to, but got"
            f" {source.num_fewshot}"
        )
    texts = texts_of(field, str(name), config) if kind.generates else None
    filters = texts.filters if texts else ()
    if source.filter is not None and source.filter not in filters:
        raise ValueError(
            f"{where}.dataset.filter: must be one of {', '.join(filters) or 'none'}, but got"
            f" {source.filter}"
        )
    if str(process).endswith("process_results_mc2") and output == "multiple_choice":
        kind = RIGHT_CHOICES
    elif process and kind not in (LANGUAGE_MODELING, GENERATION):
        raise ValueError(
            f"{field}: {name} scores by a function of its own ({Path(str(process)).name}), which"
            " is not reproduced here"
        )
    metrics, own = _metrics(config, kind)
    if not metrics:
        raise ValueError(
            f"{field}: a task must have a metric that is computed here"
            f" ({_wanted(kind)}), but {name} has {', '.join(own) or 'none'}"
        )
    return Described(kind=kind, metrics=metrics, texts=texts)


def _wanted(kind: Causal) -> str:
    mean = "one number a document, of which more is better, and their mean"
    return mean if kind.generates else f"{', '.join(PREFERRED)}, byte_perplexity"


def open_task(where: str, source: DataSource) -> Any:
    """Return the harness's own object of a task that ``describe`` takes, with its data.

    Raises:
        UnreachableError: the hub does not give the data.
        ValueError: the data cannot be read.

    """
    from datasets import disable_progress_bars

    disable_progress_bars()
    file, config = _entry(where, source)
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        (task,) = TaskManager(include_defaults=False).load(str(file))["tasks"].values()
    except (Exception, SystemExit) as error:
        text = f"{where}.dataset: cannot be read: {first_line(error.__cause__ or error)}"
        path = str(config.get("dataset_path"))
        is_local = path in LOCAL_BUILDERS or Path(path).exists() or isinstance(error, ImportError)
        raise (ValueError if is_local else UnreachableError)(text) from error
    if source.num_fewshot is not None or task.config.num_fewshot is None:
        task.set_config("num_fewshot", source.num_fewshot or 0)
    return task


def scorer(where: str, source: DataSource, document: Mapping[str, Any]) -> Any:
    """Return the harness's object of a task, opened once a process, that scores documents.

    Args:
        where: start of errors.
        source: names the task.
        document: any one of the task's; its data is not read.

    """
    key = (str(source.harness), source.include)
    if key not in _SCORERS:
        file, _ = _entry(where, source)
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks._yaml_loader import load_yaml

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        config = load_yaml(file, resolve_func=True)
        for field in ("tag", "group", *OF_DATA):
            config.pop(field, None)
        config |= {"custom_dataset": lambda **_: {"test": _Documents([document])}}
        _SCORERS[key] = ConfigurableTask(config=config | {"test_split": "test"})
    return _SCORERS[key]


class _Documents(list[Mapping[str, Any]]):
    """Documents that are at hand, as the harness reads a data set."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Columns by name."""
        return self[0]


def _metrics(config: Mapping[str, Any], kind: Causal) -> tuple[tuple[str, ...], list[str]]:
    """Return a task's metrics that are computed here, and the names of all that it has."""
    entries = config.get("metric_list")
    if entries is None:
        from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

        entries = [{"metric": name} for name in DEFAULT_METRIC_REGISTRY[config["output_type"]]]
    own = [str(entry.get("metric")) for entry in entries]
    if kind is LANGUAGE_MODELING:
        return ("byte_probability",) * any(name in SIZED_BY_BYTES for name in own), own
    means = tuple(str(entry["metric"]) for entry in entries if _is_mean(entry, kind))
    if kind.generates:
        pooled = tuple(str(entry["metric"]) for entry in entries if _is_pooled(entry))
        return tuple(name for name in means if name not in POOLED) + pooled, own
    plain = set(means) & {metric.name for metric in kind.metrics}
    return tuple(name for name in PREFERRED if name in plain), own


def _is_mean(entry: Mapping[str, Any], kind: Causal) -> bool:
    """Tell whether a metric is a mean over documents, of which more is better."""
    mean, more = entry.get("aggregation"), entry.get("higher_is_better")
    if kind.generates and None in (mean, more):
        from lm_eval.api.registry import get_metric_aggregation, is_higher_better

        name = entry["metric"]
        mean = mean or getattr(get_metric_aggregation(name), "__name__", "")
        more = bool(is_higher_better(name)) if more is None else more
    return mean in (None, "mean") and more in (None, True)


def _is_pooled(entry: Mapping[str, Any]) -> bool:
    """Tell whether a metric is a mean over the parts of all documents, as the harness has it."""
    is_of_parts = str(entry.get("aggregation")).endswith(POOLING)
    return entry["metric"] in POOLED and is_of_parts and entry.get("higher_is_better", True)


def _entry(where: str, source: DataSource) -> tuple[Path, dict[str, Any]]:
    """Return the YAML file of a single task, and what it says.

    Raises:
        UnreachableError, ValueError: as of ``describe``.

    """
    field, name = f"{where}.dataset.harness", str(source.harness)
    _check_installed(field)
    from lm_eval.tasks._yaml_loader import load_yaml

    path = _files(source.include).get(name)
    if path is None:
        raise ValueError(f"{field}: lm-evaluation-harness {VERSION} has no task {name}")
    config = load_yaml(path, resolve_func=False)
    if "class" in config:
        raise ValueError(f"{field}: a task must be a YAML file, but {name} is a Python class")
    return path, config


def _check_installed(field: str) -> None:
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        found = "none"
    if found != VERSION:
        raise UnreachableError(
            f"{field}: lm-evaluation-harness {VERSION} must be installed (pip install"
            f" 'cabs-search[llm]'), but got {found}"
        )


@cache
def _files(include: str | None) -> Mapping[str, Path]:
    """Return the YAML file of each task by its name: in a folder if there, else the harness's own.

    The harness itself parses its 14,000 files, which takes up to a minute and more.
    """
    import lm_eval.tasks

    found: dict[str, Path] = {}
    for folder in (include, Path(lm_eval.tasks.__file__).parent):
        for file in sorted(Path(folder).rglob("*.yaml")) if folder else ():
            text = file.read_text(encoding="utf-8", errors="replace")
            if (name := TASK_LINE.search(text)) and not GROUP_LINE.search(text):
                found.setdefault(name[1], file)
    return found
