"""Rows of a data set."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cabs_search.common.formats import digest, first_line
from cabs_search.kinds.kinds import columns_of, label_of, texts_of
from cabs_search.spec.locations import UnreachableError
from cabs_search.spec.task import Task

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Row:
    """One row in the program's own form."""

    texts: tuple[str, ...]
    label: Any
    group: str = ""

    @property
    def text(self) -> str:
        """What makes two rows one text."""
        return " ".join(self.texts).lower().strip()

    @property
    def key(self) -> str:
        """What names the row: a hash of its texts and label."""
        return digest("\x1f".join((*self.texts, str(self.label))))


def read_rows(where: str, task: Task, split: str | None, config: Any) -> list[Row]:
    data = read_dataset(where, task, split)
    columns = columns_of(task)
    for field, column in columns:
        if column not in data.column_names:
            raise ValueError(
                f"{where}.{field}: no column {column}; the data has {', '.join(data.column_names)}"
            )
    rows: dict[str, Row] = {}
    for values in data.select_columns(list(dict.fromkeys(column for _, column in columns))):
        texts = texts_of(where, task, values)
        row = Row(texts, label_of(where, task, config, texts, values[task.label]))
        group = values[task.group] if task.group else None
        rows.setdefault(
            row.key, replace(row, group=digest(row.text if group is None else str(group)))
        )
    return list(rows.values())


def read_dataset(where: str, task: Task, split: str | None) -> Dataset:
    """The rows as a ``datasets.Dataset``. Raises ValueError where they cannot be had."""
    from datasets import Dataset, disable_progress_bars, load_dataset

    source = task.dataset
    disable_progress_bars()
    try:
        if source.callable:
            module, _, function = source.callable.partition(":")
            made = getattr(importlib.import_module(module), function)
            found = made(split=split) if split else made()
        elif source.hub:
            found = load_dataset(source.hub, source.config, split=split)
        else:
            kind = "csv" if source.csv else "json" if source.json else "parquet"
            found = load_dataset(kind, data_files=getattr(source, kind), split=split or "train")
    except (Exception, SystemExit) as error:
        text = f"{where}.dataset: cannot be read: {first_line(error.__cause__ or error)}"
        raise (UnreachableError if source.hub else ValueError)(text) from error
    if not isinstance(found, Dataset):
        raise ValueError(
            f"{where}.split: the data has several splits ({', '.join(found)}), of which one must be"
            " named"
            if isinstance(found, dict)
            else f"{where}.dataset: a datasets.Dataset is needed, but got {type(found).__name__}"
        )
    return found
