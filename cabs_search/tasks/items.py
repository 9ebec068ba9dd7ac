"""Tokenized items of one split of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cabs_search.common.formats import digest
from cabs_search.kinds.base import Item
from cabs_search.kinds.causal import Continuing
from cabs_search.metrics.base import Values
from cabs_search.spec.task import Task
from cabs_search.tasks.dataset import Row
from cabs_search.tasks.tokenizer import pad_token_id

SplitName = Literal["search", "confirm"]
SPLITS: tuple[SplitName, SplitName] = ("search", "confirm")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Items:
    """One split of one task, tokenized, in the study's order of items."""

    task: Task
    keys: tuple[str, ...]
    """Name of each item: a hash of its texts and label."""
    rows: tuple[Item, ...]
    pad: Mapping[str, int]
    """Padding of each field of a sequence."""
    groups: tuple[str, ...] = ()
    """Group of each item, such as its article; empty: each item by itself."""
    tokenizer: Any = None
    """Tokenizer, for kinds that generate texts."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def digest(self) -> str:
        """Hash of the items as the model sees them, and of their labels and order."""
        seen: list[tuple[Any, ...]] = [(row.sequences, row.label) for row in self.rows]
        if self.rows[0].targets:
            seen = [(*one, row.targets) for one, row in zip(seen, self.rows, strict=True)]
        known: tuple[Any, ...] = (self.keys, seen, sorted(self.pad.items()))
        if self.task.kind.generates:
            known = (*known, self.task.stop, self.task.max_new_tokens, self.task.dataset.filter)
        return digest(repr(known))

    @cached_property
    def labels(self) -> Values:
        """Label of each item, [items]."""
        return self.task.kind.values([row.label for row in self.rows])

    @cached_property
    def lengths(self) -> Ints:
        """Number of tokens of each item's longest sequence, [items]."""
        return np.array([row.longest for row in self.rows], dtype=np.int64)

    @property
    def positions(self) -> int:
        """Number of positions that the model must have."""
        return max(row.positions for row in self.rows) + (self.task.max_new_tokens or 0)

    @cached_property
    def counts(self) -> Ints:
        """Number of sequences of each item, [items]."""
        return np.array([len(row.sequences) for row in self.rows], dtype=np.int64)

    @cached_property
    def firsts(self) -> Ints:
        """Index of each item's first sequence among all, and their number, [items + 1]."""
        return np.concatenate([[0], self.counts.cumsum()])

    @cached_property
    def starts(self) -> Ints:
        """Index of each sequence's first token in ``tokens``, and their number, [sequences + 1]."""
        sizes = [len(sequence["input_ids"]) for row in self.rows for sequence in row.sequences]
        return np.concatenate([[0], np.array(sizes, dtype=np.int64).cumsum()])

    @cached_property
    def tokens(self) -> dict[str, Ints]:
        """All sequences one after another, by field of a sequence, [tokens]."""
        sequences = [sequence for row in self.rows for sequence in row.sequences]
        return {
            f: np.concatenate([np.array(s[f], dtype=np.int64) for s in sequences]) for f in self.pad
        }


def tokenize(where: str, tokenizer: Any, config: Any, task: Task, rows: Sequence[Row]) -> Items:
    """Tokenize rows, of which there must be one at least."""

    def encode(row: Row) -> Item:
        common = (where, task, tokenizer, config, row.texts, row.label)
        if row.requests:
            assert isinstance(task.kind, Continuing)
            item = task.kind.encode_requests(*common, row.requests)
            return item if row.reference is None else replace(item, marks=row.reference)
        return task.kind.encode(*common)

    items = tuple(map(encode, rows))
    pad = dict.fromkeys(items[0].sequences[0], 0)
    return Items(
        task=task,
        keys=tuple(row.key for row in rows),
        rows=items,
        pad=pad | {"input_ids": pad_token_id(config, tokenizer)},
        groups=tuple(row.group for row in rows),
        tokenizer=tokenizer if task.kind.generates else None,
    )
