"""Ties between a record and its study: what must stay the same, and the items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np

from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items, SplitName

ItemsOfSplits: TypeAlias = Mapping[SplitName, Mapping[str, Items]]
"""Items in the study's order, by split and task."""


def identity(spec: Spec, items: ItemsOfSplits, weights: Mapping[str, str]) -> dict[str, str]:
    """Return everything that must stay the same while a study goes on, by name."""
    study = {f"weights of {name}": fingerprint for name, fingerprint in weights.items()}
    study |= {"name": spec.name, "search.block": str(spec.search.block)}
    study |= {"dtype": spec.dtype, "seed": str(spec.seed)}
    if spec.generator.engine != "transformers":  # older records have no such entry
        study["generator.engine"] = spec.generator.engine
    for split, by_task in items.items():
        study |= {f"{split} items of {task}": its.digest for task, its in by_task.items()}
    for name, task in spec.tasks.items():
        arguments = json.dumps(task.metric_arguments, sort_keys=True)
        study[f"tasks.{name}.kind"] = task.kind.name
        study[f"tasks.{name}.metric"] = f"{task.metric} {arguments}"
        study[f"tasks.{name}.max_length"] = str(task.max_length)
        study[f"tasks.{name}.expert"] = spec.expert_of(name)
    return study


def item_rows(items: ItemsOfSplits) -> Iterator[tuple[str, str, int, str, str]]:
    """Yield split, task, position, key and label of every item."""
    for split, by_task in items.items():
        for task, its in by_task.items():
            for position, (key, row) in enumerate(zip(its.keys, its.rows, strict=True)):
                yield split, task, position, key, json.dumps(row.label)


def group_rows(items: ItemsOfSplits) -> Iterator[tuple[str, str]]:
    """Yield the key and the numbers of the items' groups, for each split and task that has some."""
    for split, by_task in items.items():
        for task, its in by_task.items():
            if its.groups:
                numbers = np.unique(its.groups, return_inverse=True)[1]
                yield groups_key(split, task), json.dumps(numbers.tolist())


def groups_key(split: SplitName, task: str) -> str:
    """Return the key under which the items' groups are kept."""
    return f"{split} groups of {task}"
