"""Rows divided into a search and a confirm split, and those of each that are scored."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

from cabs_search.common.formats import digest
from cabs_search.spec.task import Task
from cabs_search.tasks.dataset import Row
from cabs_search.tasks.items import SPLITS, SplitName


def divide(rows: Sequence[Row], task: Task, seed: int) -> dict[SplitName, list[Row]]:
    """Divide rows by whole groups, in the order of the groups' hashes.

    Groups go to the search split until it has as many rows as it asks for, then to the confirm
    split. Where all members of a group of tasks count the same, each member's rows are divided by
    themselves.
    """
    wanted = {split: getattr(task, split).items for split in SPLITS}
    if task.dataset.average != "macro":
        return _divide(rows, wanted, seed)
    by_member = _by_member(rows)
    shares = {split: items and items // len(by_member) for split, items in wanted.items()}
    divided = [_divide(own, shares, seed) for own in by_member.values()]
    return {
        split: list(itertools.chain.from_iterable(parts[split] for parts in divided))
        for split in SPLITS
    }


def _divide(
    rows: Sequence[Row], wanted: Mapping[SplitName, int | None], seed: int
) -> dict[SplitName, list[Row]]:
    rest = len(rows) - wanted["confirm"] if wanted["confirm"] else len(rows) // 2
    most = wanted["search"] or rest
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    parts: dict[SplitName, list[Row]] = {"search": [], "confirm": []}
    for group in sorted(groups, key=lambda group: digest(f"{seed} side {group}")):
        parts["search" if len(parts["search"]) < most else "confirm"] += groups[group]
    return parts


def choose(rows: Sequence[Row], task: Task, wanted: int | None) -> list[Row]:
    """Return the rows to score, in their order.

    Where all members of a group of tasks count the same, each gives as many rows as the others, in
    turn: the mean over rows is the mean over members, and about so in every part of the rows.

    Args:
        rows: those of a split, in the study's order.
        task: the task.
        wanted: most rows; None: all.

    """
    if task.dataset.average != "macro":
        return list(rows[:wanted])
    by_member = _by_member(rows)
    each = min(map(len, by_member.values()), default=0)
    turns = zip(*(own[:each] for own in by_member.values()), strict=True)
    return list(itertools.chain.from_iterable(turns))[: most_rows(rows, task, wanted)]


def most_rows(rows: Sequence[Row], task: Task, wanted: int | None) -> int | None:
    """Return the most rows to score, as many of each member where all count the same."""
    members = len(_by_member(rows)) if task.dataset.average == "macro" else 1
    return wanted and wanted - wanted % max(1, members)


def _by_member(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.member, []).append(row)
    return found


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
