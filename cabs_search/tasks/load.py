"""Tasks: rows of a data set become tokenized items, divided into two splits.

Every task has a *search* split and a *confirm* split. Where both read the same rows they are
divided by the hash of a row's group, so that the division depends on content only and no group
stands on both sides; where they read two splits of the data, groups of the confirm split are left
out of the search split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cabs_search.common.formats import digest, first_line
from cabs_search.kinds.kinds import check_head, names_of, tokenizer_arguments
from cabs_search.metrics.metrics import check_metric
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Split, Task
from cabs_search.tasks.dataset import read_rows
from cabs_search.tasks.items import SPLITS, Items, SplitName, tokenize
from cabs_search.tasks.splits import divide, without_leaks
from cabs_search.tasks.tokenizer import positions


def load_items(spec: Spec, name: str) -> dict[SplitName, Items]:
    """Read, divide and tokenize one task's rows.

    Raises:
        ValueError: the data cannot be had, lacks a column, a label or enough rows.

    """
    from transformers import AutoConfig, AutoTokenizer

    task, expert = spec.tasks[name], Path(spec.experts[spec.expert_of(name)])
    where = f"tasks.{name}"
    try:
        config = AutoConfig.from_pretrained(expert)
        tokenizer = AutoTokenizer.from_pretrained(
            expert if has_tokenizer(expert) else spec.base, **tokenizer_arguments(task, config)
        )
    except Exception as error:
        raise ValueError(
            f"experts.{spec.expert_of(name)}: {expert}: config or tokenizer cannot be read:"
            f" {first_line(error)}"
        ) from error
    check_head(where, task, spec.expert_of(name), config)
    check_metric(where, task, names_of(config))
    names = {split: getattr(task, split).split or task.split for split in SPLITS}
    if names["search"] == names["confirm"]:
        parts = divide(read_rows(where, task, names["search"], config), task, spec.seed)
    else:
        parts = {split: read_rows(where, task, name, config) for split, name in names.items()}
    parts = without_leaks(where, parts)
    has_twin = any(
        other is not task and _reads(other) == _reads(task) for other in spec.tasks.values()
    )
    found = {}
    for split in SPLITS:
        wanted: Split = getattr(task, split)
        chosen = sorted(
            parts[split],
            key=lambda r: (digest(f"{spec.seed} {r.texts if has_twin else r.key}"), r.key),
        )
        if len(chosen) < (wanted.items or 2):
            raise ValueError(
                f"{where}.{split}.items: at most the rows at hand must be asked for, but got"
                f" {wanted.items or 2} of {len(chosen)}"
            )
        if len({row.group for row in chosen[: wanted.items]}) < 2:
            raise ValueError(
                f"{where}.group: two groups at the least must be in the {split} split, but got one"
            )
        found[split] = tokenize(where, tokenizer, config, task, chosen[: wanted.items])
        longest, limit = max(row.longest for row in found[split].rows), positions(config)
        if longest > limit:
            raise ValueError(
                f"{where}.max_length: at most {limit}, the model's positions, but got"
                f" {task.max_length} and an item of {longest} tokens"
            )
    return found


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a model's folder holds a tokenizer; if not, the base's is used."""
    return any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))


def _reads(task: Task) -> tuple[Any, ...]:
    """What tasks have in common whose items are ordered by their texts alone, to be scored in one
    pass.
    """
    return task.dataset, task.text, task.choices


def load_study_items(spec: Spec) -> dict[SplitName, dict[str, Items]]:
    """Every task's items by split. Raises ValueError where the data is wrong."""
    by_task = {task: load_items(spec, task) for task in spec.tasks}
    return {split: {task: found[split] for task, found in by_task.items()} for split in SPLITS}
