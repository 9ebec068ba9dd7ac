"""Rows divided into a search and a confirm split."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from cabs_search.common.formats import digest
from cabs_search.spec.task import Task
from cabs_search.tasks.dataset import Row
from cabs_search.tasks.items import SplitName


def divide(rows: Sequence[Row], task: Task, seed: int) -> dict[SplitName, list[Row]]:
    """Divide rows by whole groups, in the order of the groups' hashes.

    Groups go to the search split until it has as many rows as it asks for, then to the confirm
    split.
    """
    rest = len(rows) - task.confirm.items if task.confirm.items else len(rows) // 2
    wanted = task.search.items or rest
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    parts: dict[SplitName, list[Row]] = {"search": [], "confirm": []}
    for group in sorted(groups, key=lambda group: digest(f"{seed} side {group}")):
        parts["search" if len(parts["search"]) < wanted else "confirm"] += groups[group]
    return parts


def without_leaks(where: str, parts: Mapping[SplitName, list[Row]]) -> dict[SplitName, list[Row]]:
    """Drop search rows whose group or text is in the confirm split too, with a warning."""
    groups = {row.group for row in parts["confirm"]}
    texts = {row.text for row in parts["confirm"]}
    search = [row for row in parts["search"] if row.group not in groups and row.text not in texts]
    if left_out := len(parts["search"]) - len(search):
        warnings.warn(
            f"{where}: {left_out} search rows are left out: the confirm split has them too",
            stacklevel=3,
        )
    return {"search": search, "confirm": parts["confirm"]}
