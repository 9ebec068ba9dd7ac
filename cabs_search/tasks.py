"""Tasks: rows of a data set become tokenized items, and a model's output one score and one loss per item.

Every task has a *search* split and a *confirm* split. Where both read the same rows they are divided by the hash of a
row's group, so that the division depends on content only and no group stands on both sides; where they read two
splits of the data, groups of the confirm split are left out of the search split.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.checkpoint import first_line
from cabs_search.spec import Spec, Split, Task

if TYPE_CHECKING:
    from datasets import Dataset

SplitName = Literal["search", "confirm"]
SPLITS: tuple[SplitName, SplitName] = ("search", "confirm")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Items:
    """One split of one task, tokenized, in the study's order of items."""

    keys: tuple[str, ...]
    """What names an item: a hash of its texts and label."""
    encodings: tuple[dict[str, list[int]], ...]
    """The tokenizer's output for each item."""
    labels: Ints
    """Class of each item, [items]."""
    pad: Mapping[str, int]
    """What each field of an encoding is padded with."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def digest(self) -> str:
        """A hash of the items as the model sees them, and of their labels and order."""
        return _digest(repr((self.keys, self.encodings, self.labels.tolist(), sorted(self.pad.items()))))

    @property
    def lengths(self) -> Ints:
        """Tokens of each item, [items]."""
        return np.array([len(e["input_ids"]) for e in self.encodings], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a model did on some items, one value an item: all [items]."""

    scores: npt.NDArray[np.float32]
    """1 where the item is right, else 0."""
    losses: npt.NDArray[np.float32]
    """Cross-entropy in nats."""
    predictions: Ints
    """The class predicted."""


def outcome(logits: Tensor, labels: Tensor) -> Outcome:
    """Score sequence classification: logits [items, classes], labels [items]."""
    predictions = logits.argmax(-1)
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return Outcome(
        (predictions == labels).float().cpu().numpy(), losses.cpu().numpy(), predictions.cpu().numpy().astype(np.int64)
    )


def metric(task: Task, predictions: Ints, labels: Ints) -> float:
    """A task's metric over items; by name through ``evaluate`` where it is not an ordinary one."""
    name, arguments = task.metric, task.metric_arguments
    if arguments and name in ("accuracy", "exact_match", "matthews_correlation"):
        raise ValueError(f"it takes no arguments here, but got {', '.join(arguments)}")
    if name in ("accuracy", "exact_match"):
        return float(np.mean(predictions == labels))
    if name == "f1":
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, zero_division=0.0, **arguments))
    if name == "matthews_correlation":
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(labels, predictions))
    found = _evaluate_module(name).compute(predictions=predictions, references=labels, **arguments)
    if name not in found and len(found) != 1:
        raise ValueError(f"of its values ({', '.join(found)}) none is called {name}")
    return float(found[name] if name in found else next(iter(found.values())))


def check_metric(where: str, task: Task, classes: int) -> None:
    """Raises ValueError where a task's metric cannot be computed."""
    labels = np.arange(classes, dtype=np.int64)
    try:
        metric(task, labels, labels)
    except Exception as error:
        raise ValueError(f"{where}.metric: {task.metric} cannot be computed: {first_line(error)}") from error


_modules: dict[str, Any] = {}


def _evaluate_module(name: str) -> Any:
    if name not in _modules:
        import evaluate

        _modules[name] = evaluate.load(name)
    return _modules[name]


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
        tokenizer = AutoTokenizer.from_pretrained(expert if has_tokenizer else spec.base)
    except Exception as error:
        raise ValueError(
            f"experts.{spec.expert_of(name)}: {expert}: config or tokenizer cannot be read: {first_line(error)}"
        ) from error
    check_metric(where, task, config.num_labels)
    names = {split: getattr(task, split).split or task.split for split in SPLITS}
    if names["search"] == names["confirm"]:
        parts = _divide(_rows(where, task, names["search"], config), task, spec.seed)
    else:
        parts = {split: _rows(where, task, name, config) for split, name in names.items()}
    parts = _without_leaks(where, parts)
    found = {}
    for split in SPLITS:
        wanted: Split = getattr(task, split)
        chosen = sorted(parts[split], key=lambda row: _digest(f"{spec.seed} {row.key}"))
        if len(chosen) < (wanted.items or 2):
            raise ValueError(
                f"{where}.{split}.items: at most the rows at hand must be asked for, but got {wanted.items or 2} of "
                f"{len(chosen)}"
            )
        found[split] = _tokenize(tokenizer, config, task, chosen[: wanted.items])
        longest, limit = int(found[split].lengths.max()), _positions(config)
        if longest > limit:
            raise ValueError(
                f"{where}.max_length: at most {limit}, the model's positions, but got {task.max_length} and an item of "
                f"{longest} tokens"
            )
    return found


def _positions(config: Any) -> float:
    """How many tokens a model takes; RoBERTa counts its positions from behind the pad token."""
    positions = getattr(config, "max_position_embeddings", None) or float("inf")
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= config.pad_token_id + 1
    return float(positions) if positions == float("inf") else int(positions)


@dataclass(frozen=True)
class _Row:
    texts: tuple[str, ...]
    label: int
    group: str

    @property
    def text(self) -> str:
        return " ".join(self.texts).lower().strip()

    @property
    def key(self) -> str:
        return _digest("\x1f".join((*self.texts, str(self.label))))


def _rows(where: str, task: Task, split: str | None, config: Any) -> list[_Row]:
    data = read_dataset(where, task, split)
    columns = (task.text,) if isinstance(task.text, str) else task.text
    for field, column in [*(("text", c) for c in columns), ("label", task.label), ("group", task.group)]:
        if column is not None and column not in data.column_names:
            raise ValueError(f"{where}.{field}: no column {column}; the data has {', '.join(data.column_names)}")
    texts = list(zip(*(list(data[c]) for c in columns), strict=True))
    if any(not isinstance(t, str) for pair in texts for t in pair):
        raise ValueError(f"{where}.text: every text must be a string, but column {' or '.join(columns)} has others")
    to_class = _to_class(where, task, config)
    labels = [to_class(label) for label in data[task.label]]
    groups = list(data[task.group]) if task.group else [None] * len(texts)
    rows: dict[str, _Row] = {}
    for pair, label, group in zip(texts, labels, groups, strict=True):
        row = _Row(pair, label, "")
        rows.setdefault(row.key, replace(row, group=_digest(row.text if group is None else str(group))))
    return list(rows.values())


def _to_class(where: str, task: Task, config: Any) -> Callable[[Any], int]:
    """From the data's label to the head's class: whole numbers as they are, names by the head's label2id."""

    def to_class(label: Any) -> int:
        if isinstance(label, str) and label in config.label2id:
            return int(config.label2id[label])
        if isinstance(label, (int, float)) and 0 <= label < config.num_labels and label == int(label):
            return int(label)
        raise ValueError(
            f"{where}.label: a label must be one of the head's classes "
            f"({', '.join(f'{i} {n}' for n, i in config.label2id.items())}), but column {task.label} has {label!r}"
        )

    return to_class


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
        raise ValueError(f"{where}.dataset: cannot be read: {first_line(error.__cause__ or error)}") from error
    if not isinstance(found, Dataset):
        raise ValueError(
            f"{where}.split: the data has several splits ({', '.join(found)}), of which one must be named"
            if isinstance(found, dict)
            else f"{where}.dataset: a datasets.Dataset is needed, but got {type(found).__name__}"
        )
    return found


def _divide(rows: Sequence[_Row], task: Task, seed: int) -> dict[SplitName, list[_Row]]:
    """Whole groups, in the order of their hashes, to search until it has what it asks for, the others to confirm."""
    rest = len(rows) - task.confirm.items if task.confirm.items else len(rows) // 2
    wanted = task.search.items or rest
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    sides: dict[SplitName, list[_Row]] = {"search": [], "confirm": []}
    for group in sorted(groups, key=lambda group: _digest(f"{seed} side {group}")):
        sides["search" if len(sides["search"]) < wanted else "confirm"] += groups[group]
    return sides


def _without_leaks(where: str, parts: Mapping[SplitName, list[_Row]]) -> dict[SplitName, list[_Row]]:
    """Search rows of which the confirm split has the group or the text are left out."""
    groups = {row.group for row in parts["confirm"]}
    texts = {row.text for row in parts["confirm"]}
    search = [row for row in parts["search"] if row.group not in groups and row.text not in texts]
    if left_out := len(parts["search"]) - len(search):
        warnings.warn(f"{where}: {left_out} search rows are left out: the confirm split has them too", stacklevel=3)
    return {"search": search, "confirm": parts["confirm"]}


def _tokenize(tokenizer: Any, config: Any, task: Task, rows: Sequence[_Row]) -> Items:
    columns = [list(texts) for texts in zip(*(row.texts for row in rows), strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=task.max_length)
    fields = [field for field in encoded if field != "attention_mask"]
    return Items(
        keys=tuple(row.key for row in rows),
        encodings=tuple({f: encoded[f][i] for f in fields} for i in range(len(rows))),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        pad=dict.fromkeys(fields, 0) | {"input_ids": pad_token_id(config, tokenizer)},
    )


def pad_token_id(config: Any, tokenizer: Any) -> int:
    """What a model's items are padded with: as its config says, else its tokenizer; its end mark where neither does."""
    ids = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, getattr(config, "eos_token_id", None))
    return next((int(i) for i in ids if i is not None), 0)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
