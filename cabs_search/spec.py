"""What to search: one YAML file, checked as a whole before anything runs.

The classes here are the file's schema and, frozen, what the program works with. ``load`` reads a file and makes
every location absolute; its errors name file, field, rule and value in one line.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass

from cabs_search.locations import is_hub_id, locate
from cabs_search.recipe import Groups, split_name
from cabs_search.sparsify import parse_nm

STRICT = ConfigDict(extra="forbid", str_strip_whitespace=True)
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Count = Annotated[int, Field(gt=0)]
Coefficient = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
MOST_EXPERTS_IN_ALL_ORDERS = 6
MOST_STEPS = 1_000_000
"""Values that a range of λ may hold."""

Kind = Literal["classification", "regression", "multiple-choice", "question-answering", "token-classification"]
METRICS: Mapping[Kind, str] = {
    "classification": "accuracy",
    "regression": "pearsonr",
    "multiple-choice": "accuracy",
    "question-answering": "f1",
    "token-classification": "accuracy",
}
"""The metric of a task that names none."""
LESS_IS_BETTER = ("mse", "mae", "mape", "mase", "smape", "wer", "cer", "ter", "perplexity", "brier_score")
"""Metrics that a search, which maximizes, would make worse."""


OF_CLASSES = ("accuracy", "exact_match", "f1", "matthews_correlation")
"""Metrics of classes that are computed here, and so need no network."""
CORRELATIONS = ("pearsonr", "spearmanr")
"""Those of regression."""


def _nm(value: Any) -> tuple[int, int]:
    if not isinstance(value, str) and not (isinstance(value, (list, tuple)) and len(value) == 2):
        raise ValueError(f"n:m must be written as n:m, such as 64:256, but got {value!r}")
    return parse_nm(value)


def _listed(value: Any) -> Any:
    """One value where a list is meant."""
    return [value] if isinstance(value, (str, float, int)) else value


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"each value must stand once, but got {value} twice")
    return values


def _method(name: str) -> str:
    split_name(name)
    return name


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"a group must be a regular expression, but got {text!r}: {error}") from None
    return text


NM = Annotated[tuple[int, int], BeforeValidator(_nm)]
MethodName = Annotated[str, AfterValidator(_method)]
Density = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Once = AfterValidator(_once)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataSource:
    """Where rows come from: just one of the five kinds."""

    hub: str | None = None
    """Hub id of a data set; with ``config`` where it has several."""
    config: str | None = None
    csv: str | None = None
    json: str | None = None
    """JSON lines."""
    parquet: str | None = None
    callable: str | None = None
    """``package.module:function`` that returns a ``datasets.Dataset``, called with ``split=`` if any."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [k for k in ("hub", "csv", "json", "parquet", "callable") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(f"just one of hub, csv, json, parquet, callable must be given, but got {given or 'none'}")
        if self.config and not self.hub:
            raise ValueError("config goes with hub")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Split:
    """Which rows one phase scores."""

    split: str | None = None
    """The data's own split; None: the task's ``split``."""
    items: Annotated[int, Field(ge=2)] | None = None
    """How many rows at the most; None: all."""


def _kind(info: ValidationInfo) -> Kind:
    """The kind of the task of which a field is checked."""
    kind: Kind = info.data.get("kind", "classification")
    return kind


def _text_fits(value: str | tuple[str, str], info: ValidationInfo) -> str | tuple[str, str]:
    match _kind(info):
        case "question-answering" if isinstance(value, str):
            raise ValueError(f"question-answering must have [question, context], but got {value}")
        case "token-classification" if not isinstance(value, str):
            raise ValueError(f"token-classification must have one column of word lists, but got {list(value)}")
    return value


def _choices_fit(value: str | tuple[str, ...] | None, info: ValidationInfo) -> str | tuple[str, ...] | None:
    if _kind(info) == "multiple-choice" and value is None:
        raise ValueError("multiple-choice must have a column of lists, or a list of columns, but got none")
    if _kind(info) != "multiple-choice" and value is not None:
        raise ValueError(f"choices go with multiple-choice, but got {value} with {_kind(info)}")
    if isinstance(value, tuple) and len(value) < 2:
        raise ValueError(f"multiple-choice must have two columns at least, but got {', '.join(value) or 'none'}")
    return value


def _own_metric(value: Any, info: ValidationInfo) -> Any:
    return METRICS[_kind(info)] if value is None else value


def _metric_fits(value: str, info: ValidationInfo) -> str:
    if value in LESS_IS_BETTER:
        raise ValueError(f"more must be better, as a search maximizes it, but got {value}")
    home = CORRELATIONS if _kind(info) == "regression" else OF_CLASSES
    if value in {*CORRELATIONS, *OF_CLASSES} - {*home}:
        raise ValueError(f"{_kind(info)} must have another metric, such as {METRICS[_kind(info)]}, but got {value}")
    if _kind(info) == "question-answering" and value not in ("exact_match", "f1"):
        raise ValueError(f"question-answering must have exact_match or f1, but got {value}")
    return value


def _own_length(value: Any, info: ValidationInfo) -> Any:
    return (384 if _kind(info) == "question-answering" else 128) if value is None else value


def _own_stride(value: Any, info: ValidationInfo) -> Any:
    return 128 if value is None and _kind(info) == "question-answering" else value


def _stride_fits(value: int | None, info: ValidationInfo) -> int | None:
    if value is not None and _kind(info) != "question-answering":
        raise ValueError(f"a stride goes with question-answering, but got {value} with {_kind(info)}")
    if value is not None and value >= (most := info.data.get("max_length", math.inf)):
        raise ValueError(f"stride < max_length must hold, but got (stride={value}, max_length={most})")
    return value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Task:
    """What the merged model is scored on."""

    kind: Kind = "classification"
    """What a head does; it says which fields the data must have."""
    dataset: DataSource
    text: Annotated[str | tuple[str, str], AfterValidator(_text_fits)]
    """The text's column, or the pair's two columns.

    question-answering: question and context; multiple-choice: the context, or context and question;
    token-classification: a column of word lists.
    """
    choices: Annotated[str | tuple[str, ...] | None, AfterValidator(_choices_fit)] = Field(
        default=None, validate_default=True, kw_only=True
    )
    """multiple-choice: a column of lists, or a column for each choice."""
    label: str = "label"
    group: str | None = None
    """A column; rows that share its value never stand on both sides of the split. None: rows with equal text."""
    split: str | None = None
    """The data's own split to read."""
    search: Split = Split()
    confirm: Split = Split()
    expert: Name | None = None
    """Whose head scores it; None: the expert of the task's name."""
    metric: Annotated[str, BeforeValidator(_own_metric), AfterValidator(_metric_fits)] = Field(
        default=None, validate_default=True, kw_only=True
    )
    """Named as in ``evaluate``; None: the kind's own, see METRICS."""
    metric_arguments: dict[str, Any] = Field(default_factory=dict)
    """Passed to the metric, such as ``average: macro`` for f1."""
    max_length: Annotated[int, BeforeValidator(_own_length), Field(ge=4)] = Field(
        default=None, validate_default=True, kw_only=True
    )
    """Tokens an item (question-answering: a window of it) is cut to; None: 128, for question-answering 384."""
    stride: Annotated[
        Annotated[int, Field(ge=0)] | None, BeforeValidator(_own_stride), AfterValidator(_stride_fits)
    ] = Field(default=None, validate_default=True, kw_only=True)
    """question-answering: tokens that one window of a long context has in common with the next; None: 128."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Range:
    """Values of λ."""

    low: Coefficient = 0.0
    high: Coefficient = 2.0
    step: Annotated[float, Field(gt=0)] = 0.01

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low <= high must hold, but got (low={self.low:g}, high={self.high:g})")
        if (self.high - self.low) / self.step > MOST_STEPS:
            raise ValueError(f"(high - low) / step <= {MOST_STEPS} must hold, but step is {self.step:g}")
        if not math.isclose(round((self.high - self.low) / self.step) * self.step, self.high - self.low, abs_tol=1e-9):
            raise ValueError(
                f"high - low must be a multiple of step, but got (low={self.low:g}, high={self.high:g}, "
                f"step={self.step:g})"
            )
        return self

    @property
    def steps(self) -> int:
        """How many values it holds."""
        return round((self.high - self.low) / self.step) + 1

    def __contains__(self, value: float) -> bool:
        steps = (value - self.low) / self.step
        return self.low - 1e-9 <= value <= self.high + 1e-9 and math.isclose(steps, round(steps), abs_tol=1e-6)

    def grid(self, most: int) -> tuple[float, ...]:
        """At most so many of its values, evenly spread, both ends among them."""
        count = min(most, self.steps)
        places = [round(i * (self.steps - 1) / max(1, count - 1)) for i in range(count)]
        return tuple(round(self.low + place * self.step, 9) for place in places)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lambda(Range):
    """The range of λ, and which task vectors, tensors and methods have one of their own."""

    shared: bool = False
    """One λ for all experts, or one for each."""
    groups: dict[Name, Pattern] = Field(default_factory=dict)
    """Tensors that have λ of their own: a regular expression searched for in their names, by the group's name; a
    tensor is in the first group that fits."""
    methods: dict[MethodName, Range] = Field(default_factory=dict)
    """Ranges of methods that need another one, as those do that rescale what they keep."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Space:
    """What is searched: every field with more than one value is a dimension."""

    lambda_: Lambda = Field(default=Lambda(), alias="lambda")
    method: Annotated[tuple[MethodName, ...], BeforeValidator(_listed), Field(min_length=1), Once] = ("cabs",)
    nm: Annotated[tuple[NM, ...], BeforeValidator(_listed), Field(min_length=1), Once] = ((64, 256),)
    density: Annotated[tuple[Density, ...], BeforeValidator(_listed), Field(min_length=1), Once] | None = None
    """Share kept by methods without n:m. None: the n/m of ``nm``."""
    density_shared: bool = True
    """One density, or n:m, for all experts, or one for each."""
    order: Literal["all"] | Annotated[tuple[tuple[Name, ...], ...], Field(min_length=1), Once] | None = None
    """Pruning orders: ``all``, a list, or (None) just the experts' own."""
    overlap: Literal["fill", "drop"] = "fill"
    overlap_merge: Literal["sum", "ties"] = "sum"
    """How vectors add up where masks that should be disjoint meet."""
    tail: Literal["keep", "drop"] = "keep"

    def identity(self) -> dict[str, str]:
        """What a study may not change while it goes on: all but the ranges of λ, as text by field."""
        found = {f.name: _as_text(getattr(self, f.name)) for f in fields(self) if f.name != "lambda_"}
        lambda_ = {"lambda.shared": str(self.lambda_.shared), "lambda.groups": _as_text(self.groups)}
        return found | {"density": _as_text(self.densities)} | lambda_

    def but(self, **changes: Any) -> Space:
        """A copy with some fields changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)} | changes
        return Space(**{"lambda": values.pop("lambda_")}, **values)

    @cached_property
    def densities(self) -> tuple[float, ...]:
        """The densities of methods without n:m."""
        return self.density or tuple(dict.fromkeys(n / m for n, m in self.nm))

    def range_of(self, method: str) -> Range:
        """A method's range of λ."""
        return self.lambda_.methods.get(method, self.lambda_)

    @cached_property
    def groups(self) -> Groups:
        """Groups of tensors with λ of their own."""
        return tuple(self.lambda_.groups.items())


def _as_text(value: Any) -> str:
    """A setting for people: a list with commas, n:m and orders as they are written."""
    if not isinstance(value, tuple):
        return str(value)
    marks = {int: ":", str: ">"}
    return ", ".join(marks[type(v[0])].join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Baseline:
    """Candidates with one λ for all experts, scored before any proposal."""

    lambda_: Annotated[tuple[Coefficient, ...], Field(min_length=1, alias="lambda")]
    nm: NM | None = None
    """None: the space's first."""
    density: Density | None = None
    """None: the space's first."""
    order: tuple[Name, ...] | None = None
    """None: the space's first."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Search:
    """How long and by what the space is searched."""

    trials: Count = 50
    """Candidates in all, the baselines among them."""
    sampler: Literal["tpe", "random"] = "tpe"
    workers: Count | None = None
    """Ray workers; None: one for each core."""
    block: Count = 50
    """Items of each task in one step of a worker."""
    confirm: Count = 20
    """How many of the best candidates are scored on the confirm split; of each value of a comparison 3 at the most."""
    storage: str | None = None
    """URL of the Optuna study's database; None: SQLite in the output folder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tracking:
    """What MLflow is given beside numbers."""

    model: Literal["auto", "always", "never"] = "auto"
    """Whether a study's run gets the best found as a model; auto: one of at most 2 GB, and not in a comparison."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """One study."""

    name: Annotated[str, Field(pattern=r"^[^/\\?%.][^/\\?%]*$")]
    base: str
    experts: Annotated[dict[Name, str], Field(min_length=1)]
    tasks: Annotated[dict[Name, Task], Field(min_length=1)]
    space: Space = Space()
    baselines: dict[MethodName, Baseline] = Field(default_factory=dict)
    search: Search = Search()
    tracking: Tracking = Tracking()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["cpu", "cuda", "auto"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The resident model's."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        known = ", ".join(self.experts)
        if self.space.order == "all" and len(self.experts) > MOST_EXPERTS_IN_ALL_ORDERS:
            raise ValueError(
                f"space.order: all is for {MOST_EXPERTS_IN_ALL_ORDERS} experts at the most, but there are "
                f"{len(self.experts)}; list the orders to search"
            )
        for name, task in self.tasks.items():
            if (task.expert or name) not in self.experts:
                raise ValueError(f"tasks.{name}: a task must name its expert ({known}), but got {task.expert or name}")
        for name in self.tasks:
            expert, kinds = self.expert_of(name), {self.tasks[name].kind: name}
            kinds |= {task.kind: other for other, task in self.tasks.items() if self.expert_of(other) == expert}
            if len(kinds) > 1:
                found = ", ".join(f"{kind} in {other}" for kind, other in sorted(kinds.items()))
                raise ValueError(
                    f"tasks.{name}.kind: one expert's head must score tasks of one kind, but {expert} got {found}"
                )
        orders = {"space.order": self.space.order if isinstance(self.space.order, tuple) else ()}
        orders |= {f"baselines.{k}.order": (b.order,) for k, b in self.baselines.items() if b.order}
        for where, given in orders.items():
            for i, order in enumerate(given):
                if sorted(order) != sorted(self.experts):
                    at = f"{where}[{i}]" if where == "space.order" else where
                    raise ValueError(
                        f"{at}: an order must name every expert once ({known}), but got {', '.join(order)}"
                    )
        return self

    @cached_property
    def orders(self) -> tuple[tuple[str, ...], ...]:
        """The pruning orders to search."""
        if self.space.order == "all":
            return tuple(itertools.permutations(self.experts))
        return self.space.order or (tuple(self.experts),)

    @property
    def workers(self) -> int:
        """Ray workers."""
        return self.search.workers or os.cpu_count() or 1

    def expert_of(self, task: str) -> str:
        """The expert whose head scores a task."""
        return self.tasks[task].expert or task

    def as_dict(self) -> dict[str, Any]:
        """Plain values as the YAML file would hold them."""
        values: dict[str, Any] = TypeAdapter(Spec).dump_python(self, mode="json", by_alias=True, exclude_defaults=False)
        values["space"]["nm"] = [f"{n}:{m}" for n, m in self.space.nm]
        for name, baseline in self.baselines.items():
            values["baselines"][name]["nm"] = baseline.nm and f"{baseline.nm[0]}:{baseline.nm[1]}"
        return values

    def override(self, *, trials: int | None = None, workers: int | None = None) -> Spec:
        """A copy with the command line's values in place."""
        search = self.search
        if trials is not None:
            search = replace(search, trials=trials)
        if workers is not None:
            search = replace(search, workers=workers)
        return replace(self, search=search)


def load(path: str | Path, *, locations: bool = True, download: bool = True) -> Spec:
    """Read a spec; locations come back absolute.

    Args:
        path: a YAML file, or the name of one that ships in ``search_spaces/``.
        locations: whether models and data must be there; a report needs neither.
        download: whether hub ids become folders, or stay as they are.

    Raises:
        UnreachableError: a hub id is needed that the hub does not give.
        ValueError: one line that names file, field, rule and value.

    """
    file = find_spec_file(path)
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    return parse(values, str(path), file.parent, locations=locations, download=download)


def parse(
    values: Any,
    source: str = "spec",
    relative_to: Path | None = None,
    *,
    locations: bool = True,
    download: bool = True,
) -> Spec:
    """A spec from plain values; ``source`` and ``relative_to`` as a file would give them."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: a spec must be a mapping, but got {type(values).__name__}")
    try:
        spec = TypeAdapter(Spec).validate_python(dict(values))
    except ValidationError as error:
        raise ValueError(f"{source}: {_one_line(error)}") from None
    try:
        return _located(spec, relative_to or Path(), download=download) if locations else spec
    except ValueError as error:
        raise type(error)(f"{source}: {error}") from None


def find_spec_file(path: str | Path) -> Path:
    """The file itself, or the one of that name among those that ship."""
    given = Path(path)
    if given.is_file():
        return given
    for folder in (Path(str(files("cabs_search"))) / "search_spaces", Path(__file__).parents[1] / "search_spaces"):
        shipped = folder / given.with_suffix(".yaml").name
        if len(given.parts) == 1 and shipped.is_file():
            return shipped
    raise ValueError(f"{path}: no such file")


def _located(spec: Spec, folder: Path, *, download: bool) -> Spec:
    def at(field: str, text: str) -> str:
        if not download and is_hub_id(text, folder):
            return text
        try:
            return str(locate(text, folder))
        except ValueError as error:
            raise type(error)(f"{field}: {error}") from None

    def data(name: str, task: Task) -> Task:
        for kind in ("csv", "json", "parquet"):
            if text := getattr(task.dataset, kind):
                path = (folder / Path(text).expanduser()).resolve()
                if not path.is_file():
                    raise ValueError(f"tasks.{name}.dataset.{kind}: {text}: no such file")
                return replace(task, dataset=replace(task.dataset, **{kind: str(path)}))
        return task

    return replace(
        spec,
        base=at("base", spec.base),
        experts={name: at(f"experts.{name}", text) for name, text in spec.experts.items()},
        tasks={name: data(name, task) for name, task in spec.tasks.items()},
    )


def _one_line(error: ValidationError) -> str:
    """The first error of a spec as ``field: rule and value``."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "value_error"), errors[0])  # of a union the branch that says why
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif "(" not in str(part) and "[" not in str(part):  # what pydantic adds to tell a union's branches apart
            where += f".{part}" if where else str(part)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        message = "no such field"
    elif first["type"] not in ("value_error", "missing", "missing_argument"):
        message += f", but got {first['input']!r}"
    return f"{where}: {message}" if where else message


class _Loader(yaml.SafeLoader):
    """YAML in which 3:32 is text (not 212 in base 60) and a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} stands twice, line {node.start_mark.line + 1} and after")
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?[0-9]+$"),
    "tag:yaml.org,2002:float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _number in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _number, list("-+.0123456789"))
