"""Pruners that ``search.pruner`` may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import optuna

from cabs_search.search.pruners.asha import asha
from cabs_search.search.pruners.median import median
from cabs_search.search.pruners.race import race
from cabs_search.search.pruners.surface import surface
from cabs_search.search.pruners.wilcoxon import wilcoxon
from cabs_search.spec.study import Search
from cabs_search.spec.task import Task

MakePruner: TypeAlias = Callable[[int], optuna.pruners.BasePruner]
"""Makes a pruner for a number of candidates in all."""

PRUNERS: dict[str, MakePruner] = {
    "surface": surface,
    "race": race,
    "wilcoxon": wilcoxon,
    "asha": asha,
    "median": median,
}


def find_pruner(name: str) -> MakePruner:
    """Return the pruner of that name.

    Raises:
        ValueError: there is none.

    """
    if name not in PRUNERS:
        known = " or ".join(map(repr, PRUNERS))
        raise ValueError(f"search.pruner: Input should be {known}, but got {name!r}")
    return PRUNERS[name]


def check_pruner(search: Search, tasks: Mapping[str, Task]) -> None:
    """Raise ValueError if there is no such pruner, or it does not fit to the sampler or a task."""
    name = search.pruner_used
    if name is None:
        return
    find_pruner(name)
    if name == "surface":
        if search.sampler_used != "surface":
            raise ValueError(
                "search.pruner: surface needs search.sampler: surface, but got"
                f" {search.sampler_used!r}"
            )
        return
    for task in tasks.values():
        if not task.measure.is_mean:
            raise ValueError(
                f"search.pruner: {name} needs metrics that are means over items, such as accuracy,"
                f" but got {task.metric}"
            )
