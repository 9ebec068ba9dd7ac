"""Tasks: rows of a data set become tokenized items, divided into two splits.

Every task has a *search* split and a *confirm* split. Where both read the same rows they are divided by the hash of a
row's group, so that the division depends on content only and no group stands on both sides; where they read two
splits of the data, groups of the confirm split are left out of the search split.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cabs_search.checkpoint import first_line
from cabs_search.kinds import (
    Item,
    check_head,
    columns_of,
    encode,
    label_of,
    names_of,
    texts_of,
    tokenizer_arguments,
)
from cabs_search.locations import UnreachableError
from cabs_search.metrics import Values, check_metric, values_of
from cabs_search.spec import Spec, Split, Task

if TYPE_CHECKING:
    from datasets import Dataset

SplitName = Literal["search", "confirm"]
SPLITS: tuple[SplitName, SplitName] = ("search", "confirm")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Items:
    """One split of one task, tokenized, in the study's order of items."""

    task: Task
    keys: tuple[str, ...]
    """What names an item: a hash of its texts and label."""
    rows: tuple[Item, ...]
    pad: Mapping[str, int]
    """What each field of a sequence is padded with."""
    groups: tuple[str, ...] = ()
    """What an item stands or falls with, such as its article; empty: each item by itself."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def digest(self) -> str:
        """A hash of the items as the model sees them, and of their labels and order."""
        seen = [(row.sequences, row.label) for row in self.rows]
        return _digest(repr((self.keys, seen, sorted(self.pad.items()))))

    @cached_property
    def labels(self) -> Values:
        """What each item's prediction is held against, [items]."""
        return values_of(self.task, [row.label for row in self.rows])

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each item's longest sequence, [items]."""
        return np.array([row.longest for row in self.rows], dtype=np.int64)

    @cached_property
    def counts(self) -> Ints:
        """Sequences of each item, [items]."""
        return np.array([len(row.sequences) for row in self.rows], dtype=np.int64)

    @cached_property
    def firsts(self) -> Ints:
        """Each item's first sequence among all, and behind the last item their number, [items + 1]."""
        return np.concatenate([[0], self.counts.cumsum()])

    @cached_property
    def starts(self) -> Ints:
        """Each sequence's first token among all, and behind the last sequence their number, [sequences + 1]."""
        sizes = [len(sequence["input_ids"]) for row in self.rows for sequence in row.sequences]
        return np.concatenate([[0], np.array(sizes, dtype=np.int64).cumsum()])

    @cached_property
    def tokens(self) -> dict[str, Ints]:
        """All sequences one behind another, by field of a sequence, [tokens]."""
        sequences = [sequence for row in self.rows for sequence in row.sequences]
        return {f: np.concatenate([np.array(s[f], dtype=np.int64) for s in sequences]) for f in self.pad}


def load_items(spec: Spec, name: str) -> dict[SplitName, Items]:
    """Read, divide and tokenize one task's rows.

    Raises:
        ValueError: the data cannot be had, lacks a column, a label or enough rows.

    """
    from transformers import AutoConfig, AutoTokenizer

    task, expert = spec.tasks[name], Path(spec.experts[spec.expert_of(name)])
    where = f"tasks.{name}"
    has_tokenizer = any(expert.glob("tokenizer*")) or any(expert.glob("vocab*"))
    try:
        config = AutoConfig.from_pretrained(expert)
        tokenizer = AutoTokenizer.from_pretrained(
            expert if has_tokenizer else spec.base, **tokenizer_arguments(task, config)
        )
    except Exception as error:
        raise ValueError(
            f"experts.{spec.expert_of(name)}: {expert}: config or tokenizer cannot be read: {first_line(error)}"
        ) from error
    check_head(where, task, spec.expert_of(name), config)
    check_metric(where, task, names_of(config))
    names = {split: getattr(task, split).split or task.split for split in SPLITS}
    if names["search"] == names["confirm"]:
        parts = _divide(_rows(where, task, names["search"], config), task, spec.seed)
    else:
        parts = {split: _rows(where, task, name, config) for split, name in names.items()}
    parts = _without_leaks(where, parts)
    has_twin = any(other is not task and _reads(other) == _reads(task) for other in spec.tasks.values())
    found = {}
    for split in SPLITS:
        wanted: Split = getattr(task, split)
        chosen = sorted(parts[split], key=lambda r: (_digest(f"{spec.seed} {r.texts if has_twin else r.key}"), r.key))
        if len(chosen) < (wanted.items or 2):
            raise ValueError(
                f"{where}.{split}.items: at most the rows at hand must be asked for, but got {wanted.items or 2} of "
                f"{len(chosen)}"
            )
        if len({row.group for row in chosen[: wanted.items]}) < 2:
            raise ValueError(f"{where}.group: two groups at the least must be in the {split} split, but got one")
        found[split] = tokenize(where, tokenizer, config, task, chosen[: wanted.items])
        longest, limit = max(row.longest for row in found[split].rows), _positions(config)
        if longest > limit:
            raise ValueError(
                f"{where}.max_length: at most {limit}, the model's positions, but got {task.max_length} and an item of "
                f"{longest} tokens"
            )
    return found


def _reads(task: Task) -> tuple[Any, ...]:
    """What tasks have in common whose items are ordered by their texts alone, to be scored in one pass."""
    return task.dataset, task.text, task.choices


def _positions(config: Any) -> float:
    """How many tokens a model takes; RoBERTa counts its positions from behind the pad token."""
    positions = getattr(config, "max_position_embeddings", None) or float("inf")
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= config.pad_token_id + 1
    return float(positions) if positions == float("inf") else int(positions)


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
        return _digest("\x1f".join((*self.texts, str(self.label))))


def _rows(where: str, task: Task, split: str | None, config: Any) -> list[Row]:
    data = read_dataset(where, task, split)
    columns = columns_of(task)
    for field, column in columns:
        if column not in data.column_names:
            raise ValueError(f"{where}.{field}: no column {column}; the data has {', '.join(data.column_names)}")
    rows: dict[str, Row] = {}
    for values in data.select_columns(list(dict.fromkeys(column for _, column in columns))):
        texts = texts_of(where, task, values)
        row = Row(texts, label_of(where, task, config, texts, values[task.label]))
        group = values[task.group] if task.group else None
        rows.setdefault(row.key, replace(row, group=_digest(row.text if group is None else str(group))))
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
            f"{where}.split: the data has several splits ({', '.join(found)}), of which one must be named"
            if isinstance(found, dict)
            else f"{where}.dataset: a datasets.Dataset is needed, but got {type(found).__name__}"
        )
    return found


def _divide(rows: Sequence[Row], task: Task, seed: int) -> dict[SplitName, list[Row]]:
    """Whole groups, in the order of their hashes, to search until it has what it asks for, the others to confirm."""
    rest = len(rows) - task.confirm.items if task.confirm.items else len(rows) // 2
    wanted = task.search.items or rest
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    sides: dict[SplitName, list[Row]] = {"search": [], "confirm": []}
    for group in sorted(groups, key=lambda group: _digest(f"{seed} side {group}")):
        sides["search" if len(sides["search"]) < wanted else "confirm"] += groups[group]
    return sides


def _without_leaks(where: str, parts: Mapping[SplitName, list[Row]]) -> dict[SplitName, list[Row]]:
    """Search rows of which the confirm split has the group or the text are left out."""
    groups = {row.group for row in parts["confirm"]}
    texts = {row.text for row in parts["confirm"]}
    search = [row for row in parts["search"] if row.group not in groups and row.text not in texts]
    if left_out := len(parts["search"]) - len(search):
        warnings.warn(f"{where}: {left_out} search rows are left out: the confirm split has them too", stacklevel=3)
    return {"search": search, "confirm": parts["confirm"]}


def tokenize(where: str, tokenizer: Any, config: Any, task: Task, rows: Sequence[Row]) -> Items:
    """Rows (one at the least) as items."""
    items = tuple(encode(where, task, tokenizer, config, row.texts, row.label) for row in rows)
    return Items(
        task=task,
        keys=tuple(row.key for row in rows),
        rows=items,
        pad=dict.fromkeys(items[0].sequences[0], 0) | {"input_ids": pad_token_id(config, tokenizer)},
        groups=tuple(row.group for row in rows),
    )


def pad_token_id(config: Any, tokenizer: Any) -> int:
    """What a model's items are padded with: as its config says, else its tokenizer; its end mark where neither does."""
    ids = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, getattr(config, "eos_token_id", None))
    return next((int(i) for i in ids if i is not None), 0)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
