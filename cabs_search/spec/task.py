"""Tasks of a spec: data, columns, the kind of task and its metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError

from cabs_search.kinds.base import Kind
from cabs_search.kinds.choices_by_likelihood import CHOICES_BY_LIKELIHOOD
from cabs_search.kinds.registry import KINDS
from cabs_search.merging.recipe import BASE
from cabs_search.metrics.base import Metric
from cabs_search.metrics.scored import scored_metric
from cabs_search.spec.fields import MOST, STRICT, Name, listed

DEFAULT_LABEL = "label"
SOURCES = ("hub", "csv", "json", "parquet", "callable", "harness")
HARNESS_CHOICES = "choices"
"""Column of choices that a prediction needs, of a task of lm-evaluation-harness."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataSource:
    """Source of rows: exactly one of hub, csv, json, parquet, callable and harness."""

    hub: str | None = None
    """Hub id of a data set; ``config`` chooses one of several."""
    config: str | None = None
    csv: str | None = None
    json: str | None = None
    """JSON lines."""
    parquet: str | None = None
    callable: str | None = None
    """``package.module:function`` that returns a ``datasets.Dataset``; gets ``split=``, if any."""
    harness: str | None = None
    """Name of a task of lm-evaluation-harness; the fields below go with it."""
    include: str | None = None
    """Folder of YAML files of such tasks; None: those that the harness has."""
    num_fewshot: Annotated[int, Field(ge=0, le=MOST)] | None = None
    """Examples before each document; None: as many as the task says, or none."""
    chat_template: bool = False
    """Whether prompts are rendered by the tokenizer's chat template, each example as a turn."""
    average: Literal["micro", "macro"] | None = None
    """Average of a group's tasks: all documents count the same (None, micro), or all tasks."""
    filter: str | None = None
    """Name of the task's filter through which generated texts go; None: its first."""
    allow_test: bool = False
    """Whether the search may score documents of the task's own test split."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [source for source in SOURCES if getattr(self, source)]
        if len(given) != 1:
            raise ValueError(
                f"just one of {', '.join(SOURCES)} must be given, but got {given or 'none'}"
            )
        if self.config and not self.hub:
            raise ValueError("config goes with hub")
        for field in ("include", "num_fewshot", "chat_template", "average", "filter", "allow_test"):
            if getattr(self, field) and not self.harness:
                raise ValueError(f"{field} goes with harness")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Split:
    """Rows that one phase scores."""

    split: str | None = None
    """The data's own split; None: the task's ``split``."""
    items: Annotated[int, Field(ge=2, le=MOST)] | None = None
    """Most rows; None: all."""


def _is_of_harness(info: ValidationInfo) -> bool:
    """Tell whether the task whose field is checked is one of lm-evaluation-harness."""
    data: DataSource | None = info.data.get("dataset")
    return data is not None and data.harness is not None


def _kind_named(value: Any, info: ValidationInfo) -> Kind:
    is_of_harness = _is_of_harness(info)
    if value is None:
        return CHOICES_BY_LIKELIHOOD if is_of_harness else KINDS[0]
    for kind in KINDS:
        if value in (kind, kind.name):
            if is_of_harness and not kind.is_causal:
                raise ValueError(f"{kind} is no kind of a task of lm-evaluation-harness")
            return kind
    *names, last = (repr(kind.name) for kind in KINDS)
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})


def _kind(info: ValidationInfo) -> Kind:
    """Return the kind of the task whose field is checked."""
    kind: Kind = info.data.get("kind", KINDS[0])
    return kind


def _check_as_harness(value: Any, default: Any, info: ValidationInfo) -> None:
    if _is_of_harness(info) and value != default:
        raise ValueError(f"a task of lm-evaluation-harness says it itself, but got {value}")


def _default_text(value: Any, info: ValidationInfo) -> Any:
    if value is not None:
        return value
    if _is_of_harness(info):
        return _kind(info).harness_text
    raise PydanticKnownError("missing")


def _check_text(value: str | tuple[str, str], info: ValidationInfo) -> str | tuple[str, str]:
    _check_as_harness(value, _kind(info).harness_text, info)
    _kind(info).check_text(value)
    return value


def _default_choices(value: Any, info: ValidationInfo) -> Any:
    is_default = value is None and _is_of_harness(info) and _kind(info).takes_choices
    return HARNESS_CHOICES if is_default else value


def _check_choices(
    value: str | tuple[str, ...] | None, info: ValidationInfo
) -> str | tuple[str, ...] | None:
    kind = _kind(info)
    if value is not None and not kind.takes_choices:
        takers = " or ".join(kind.name for kind in KINDS if kind.takes_choices)
        raise ValueError(f"choices go with {takers}, but got {value} with {kind}")
    _check_as_harness(value, HARNESS_CHOICES if kind.takes_choices else None, info)
    kind.check_choices(value)
    return value


def _check_label(value: str, info: ValidationInfo) -> str:
    _check_as_harness(value, DEFAULT_LABEL, info)
    if value != DEFAULT_LABEL and not _kind(info).reads_label:
        raise ValueError(f"{_kind(info)} reads no label, but got {value}")
    return value


def _check_expert(value: str | None, info: ValidationInfo) -> str | None:
    if value is not None and _kind(info).is_causal:
        raise ValueError(
            f"{_kind(info)} is scored with the output layer that is merged, and takes no expert,"
            f" but got {value}"
        )
    return value


def _default_metric(value: Any, info: ValidationInfo) -> Any:
    return _kind(info).metrics[0].name if value is None else value


def _check_metric(value: str, info: ValidationInfo) -> str:
    if not _is_of_harness(info):  # whose own metrics are not known here
        _kind(info).check_metric(value)
    return value


def _default_length(value: Any, info: ValidationInfo) -> Any:
    return _kind(info).default_max_length if value is None else value


def _default_stride(value: Any, info: ValidationInfo) -> Any:
    return _kind(info).default_stride if value is None else value


def _check_stride(value: int | None, info: ValidationInfo) -> int | None:
    kind = _kind(info)
    if value is not None and kind.default_stride is None:
        takers = " or ".join(kind.name for kind in KINDS if kind.default_stride is not None)
        raise ValueError(f"a stride goes with {takers}, but got {value} with {kind}")
    if value is not None and value >= (most := info.data.get("max_length", math.inf)):
        raise ValueError(
            f"stride < max_length must hold, but got (stride={value}, max_length={most})"
        )
    return value


def _default_new_tokens(value: Any, info: ValidationInfo) -> Any:
    return _kind(info).default_max_new_tokens if value is None else value


def _check_generates(value: Any, info: ValidationInfo) -> Any:
    kind = _kind(info)
    if value and not kind.generates:
        takers = " or ".join(kind.name for kind in KINDS if kind.generates)
        raise ValueError(f"it goes with {takers}, but got {value} with {kind}")
    return value


def _check_new_tokens(value: int | None, info: ValidationInfo) -> int | None:
    if value is not None and value >= (most := info.data.get("max_length", math.inf)):
        raise ValueError(
            "max_new_tokens < max_length must hold, but got"
            f" (max_new_tokens={value}, max_length={most})"
        )
    return value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Task:
    """Items that a merged model is scored on, and how."""

    dataset: DataSource
    kind: Annotated[Kind, PlainValidator(_kind_named), PlainSerializer(str, return_type=str)] = (
        Field(default=None, validate_default=True, kw_only=True)
    )
    """The file of a kind says what its rows, its heads and its scores are."""
    text: Annotated[
        str | tuple[str, str], BeforeValidator(_default_text), AfterValidator(_check_text)
    ] = Field(default=None, validate_default=True, kw_only=True)
    """Column of the text, or the two columns of a pair; see the kind."""
    choices: Annotated[
        str | tuple[str, ...] | None,
        BeforeValidator(_default_choices),
        AfterValidator(_check_choices),
    ] = Field(default=None, validate_default=True, kw_only=True)
    """Column of lists of choices, or one column for each choice."""
    label: Annotated[str, AfterValidator(_check_label)] = DEFAULT_LABEL
    group: str | None = None
    """Column; rows that share its value are never in both splits. None: rows with equal text."""
    split: str | None = None
    """The data's own split to read."""
    search: Split = Split()
    confirm: Split = Split()
    expert: Annotated[Name | None, AfterValidator(_check_expert)] = None
    """Expert whose head scores the task; None: the expert of the task's name, or for kinds of
    causal language models the merged model's own output layer.
    """
    metric: Annotated[str, BeforeValidator(_default_metric), AfterValidator(_check_metric)] = Field(
        default=None, validate_default=True, kw_only=True
    )
    """Name as in ``evaluate``; None: the kind's first."""
    metric_arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the metric, such as ``average: macro`` for f1."""
    max_length: Annotated[int, BeforeValidator(_default_length), Field(ge=4, le=MOST)] = Field(
        default=None, validate_default=True, kw_only=True
    )
    """Number of tokens that an item, or each of its windows, is cut to; None: the kind's."""
    stride: Annotated[
        Annotated[int, Field(ge=0, le=MOST)] | None,
        BeforeValidator(_default_stride),
        AfterValidator(_check_stride),
    ] = Field(default=None, validate_default=True, kw_only=True)
    """Number of tokens that neighbouring windows of a long context share; None: the kind's."""
    stop: Annotated[
        tuple[Annotated[str, StringConstraints(strip_whitespace=False, min_length=1)], ...],
        BeforeValidator(listed),
        AfterValidator(_check_generates),
    ] = ()
    """Texts of which the first that is written ends a generated text, and is not a part of it."""
    max_new_tokens: Annotated[
        Annotated[int, Field(ge=1, le=MOST)] | None,
        BeforeValidator(_default_new_tokens),
        AfterValidator(_check_generates),
        AfterValidator(_check_new_tokens),
    ] = Field(default=None, validate_default=True, kw_only=True)
    """Most tokens of a generated text; None: the kind's."""

    @property
    def measure(self) -> Metric:
        """Metric with its arguments; ValueError if it takes none of them."""
        if self.kind.generates and self.dataset.harness:
            return scored_metric(self.metric).with_arguments(self.metric_arguments)
        return self.kind.metric(self.metric, self.metric_arguments)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Fields that are equal in tasks whose items share a pass through the trunk.

        Items of such tasks are ordered by their texts alone, so that both have the same order.
        """
        return replace(self.dataset, filter=None), self.text, self.choices

    @property
    def input_columns(self) -> list[str]:
        """Columns that a prediction needs."""
        return [column for _, column in self.kind.inputs(self)]


def heads(tasks: Mapping[str, Task]) -> dict[str, str]:
    """Return the model whose head scores each task, an expert or the base, by the task's name."""
    return {
        name: BASE if task.kind.is_causal else task.expert or name for name, task in tasks.items()
    }
