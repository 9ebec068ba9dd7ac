"""What a merged model is scored on: a task of a spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from cabs_search.spec.fields import STRICT, Name

Kind = Literal[
    "classification", "regression", "multiple-choice", "question-answering", "token-classification"
]
METRICS: Mapping[Kind, str] = {
    "classification": "accuracy",
    "regression": "pearsonr",
    "multiple-choice": "accuracy",
    "question-answering": "f1",
    "token-classification": "accuracy",
}
"""The metric of a task that names none."""
LESS_IS_BETTER = (
    "mse",
    "mae",
    "mape",
    "mase",
    "smape",
    "wer",
    "cer",
    "ter",
    "perplexity",
    "brier_score",
)
"""Metrics that a search, which maximizes, would make worse."""
OF_CLASSES = ("accuracy", "exact_match", "f1", "matthews_correlation")
"""Metrics of classes that are computed here, and so need no network."""
CORRELATIONS = ("pearsonr", "spearmanr")
"""Those of regression."""


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
    """``package.module:function`` that returns a ``datasets.Dataset``, called with ``split=`` if
    any.
    """

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [k for k in ("hub", "csv", "json", "parquet", "callable") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(
                "just one of hub, csv, json, parquet, callable must be given, but got"
                f" {given or 'none'}"
            )
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
            raise ValueError(
                f"token-classification must have one column of word lists, but got {list(value)}"
            )
    return value


def _choices_fit(
    value: str | tuple[str, ...] | None, info: ValidationInfo
) -> str | tuple[str, ...] | None:
    if _kind(info) == "multiple-choice" and value is None:
        raise ValueError(
            "multiple-choice must have a column of lists, or a list of columns, but got none"
        )
    if _kind(info) != "multiple-choice" and value is not None:
        raise ValueError(f"choices go with multiple-choice, but got {value} with {_kind(info)}")
    if isinstance(value, tuple) and len(value) < 2:
        raise ValueError(
            f"multiple-choice must have two columns at least, but got {', '.join(value) or 'none'}"
        )
    return value


def _own_metric(value: Any, info: ValidationInfo) -> Any:
    return METRICS[_kind(info)] if value is None else value


def _metric_fits(value: str, info: ValidationInfo) -> str:
    if value in LESS_IS_BETTER:
        raise ValueError(f"more must be better, as a search maximizes it, but got {value}")
    home = CORRELATIONS if _kind(info) == "regression" else OF_CLASSES
    if value in {*CORRELATIONS, *OF_CLASSES} - {*home}:
        raise ValueError(
            f"{_kind(info)} must have another metric, such as {METRICS[_kind(info)]}, but got"
            f" {value}"
        )
    if _kind(info) == "question-answering" and value not in ("exact_match", "f1"):
        raise ValueError(f"question-answering must have exact_match or f1, but got {value}")
    return value


def _own_length(value: Any, info: ValidationInfo) -> Any:
    return (384 if _kind(info) == "question-answering" else 128) if value is None else value


def _own_stride(value: Any, info: ValidationInfo) -> Any:
    return 128 if value is None and _kind(info) == "question-answering" else value


def _stride_fits(value: int | None, info: ValidationInfo) -> int | None:
    if value is not None and _kind(info) != "question-answering":
        raise ValueError(
            f"a stride goes with question-answering, but got {value} with {_kind(info)}"
        )
    if value is not None and value >= (most := info.data.get("max_length", math.inf)):
        raise ValueError(
            f"stride < max_length must hold, but got (stride={value}, max_length={most})"
        )
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
    """A column; rows that share its value never stand on both sides of the split. None: rows with
    equal text.
    """
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
    """Tokens an item (question-answering: a window of it) is cut to; None: 128, for
    question-answering 384.
    """
    stride: Annotated[
        Annotated[int, Field(ge=0)] | None,
        BeforeValidator(_own_stride),
        AfterValidator(_stride_fits),
    ] = Field(default=None, validate_default=True, kw_only=True)
    """question-answering: tokens that one window of a long context has in common with the next;
    None: 128.
    """
