"""Rows of a data set."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cabs_search.common.formats import digest, first_line
from cabs_search.kinds.causal import Request
from cabs_search.spec.locations import UnreachableError
from cabs_search.spec.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = ("pandas", "polars", "arrow")
"""Formats in which a data set gives tables, not values."""
BATCH = 1000
"""Rows that are read at a time."""


@dataclass(frozen=True)
class Row:
    """One row as its kind reads it."""

    texts: tuple[str, ...]
    label: Any
    group: str = ""
    requests: tuple[Request, ...] = ()
    """Contexts and continuations to score in place of those that the kind makes of the texts."""
    member: str = ""
    """Task of lm-evaluation-harness that the row belongs to, where several are scored as one."""
    reference: Any = None
    """Facts that lm-evaluation-harness scores a generated text by; None: the label counts."""

    @property
    def text(self) -> str:
        """All texts in lower case; rows with equal ones never stand in both splits."""
        return " ".join(self.texts).lower().strip()

    @property
    def key(self) -> str:
        """Name of the row: a hash of its texts, label and requests."""
        asked = itertools.chain.from_iterable(self.requests)
        return digest("\x1f".join((*self.texts, str(self.label), *asked)))


def read_rows(where: str, task: Task, split: str | None, config: Any) -> list[Row]:
    """Read a task's rows; equal rows count once.

    Args:
        where: start of errors, such as ``tasks.mood``.
        task: the task.
        split: the data's own split; None: all rows.
        config: configuration of the model whose head scores the task.

    Raises:
        ValueError: a column is missing, or holds something else than the kind reads.

    """
    data = read_dataset(where, task, split)
    columns = task.kind.inputs(task)
    columns += [("label", task.label)] if task.kind.reads_label else []
    columns += [("group", task.group)] if task.group else []
    for field, column in columns:
        if column not in data.column_names:
            raise ValueError(
                f"{where}.{field}: no column {column}; the data has {', '.join(data.column_names)}"
            )
    rows: dict[str, Row] = {}
    chosen = data.select_columns(list(dict.fromkeys(column for _, column in columns)))
    if chosen.format["type"] in TABLES:
        chosen = chosen.with_format(None)
    for values in _each_row(chosen):
        texts = task.kind.texts(where, task, values)
        label = values[task.label] if task.kind.reads_label else None
        row = Row(texts, task.kind.label(where, task, config, texts, label))
        group = values[task.group] if task.group else None
        group = digest(row.text if group is None else str(group))
        rows.setdefault(row.key, replace(row, group=group))
    return list(rows.values())


def _each_row(data: Dataset) -> Iterator[dict[str, Any]]:
    """Yield rows as dictionaries, read in batches: one by one takes several times as long."""
    for batch in data.iter(batch_size=BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def read_dataset(where: str, task: Task, split: str | None) -> Dataset:
    """Return the rows as a ``datasets.Dataset``.

    Raises:
        UnreachableError: the hub does not give them.
        ValueError: they cannot be read.

    """
    from datasets import Dataset, disable_progress_bars, load_dataset

    source = task.dataset
    disable_progress_bars()
    try:
        if source.callable:
            module, _, function = source.callable.partition(":")
            make = getattr(importlib.import_module(module), function)
            data = make(split=split) if split else make()
        elif source.hub:
            data = load_dataset(source.hub, source.config, split=split)
        else:
            form = "csv" if source.csv else "json" if source.json else "parquet"
            data = load_dataset(form, data_files=getattr(source, form), split=split or "train")
    except (Exception, SystemExit) as error:
        text = f"{where}.dataset: cannot be read: {first_line(error.__cause__ or error)}"
        raise (UnreachableError if source.hub else ValueError)(text) from error
    if isinstance(data, dict):
        raise ValueError(
            f"{where}.split: the data has several splits ({', '.join(data)}), of which one must be"
            " named"
        )
    if not isinstance(data, Dataset):
        raise ValueError(
            f"{where}.dataset: a datasets.Dataset is needed, but got {type(data).__name__}"
        )
    return data
