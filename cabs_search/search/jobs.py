"""What workers are given and give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cabs_search.kinds.base import Outcome
from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Scored
from cabs_search.tasks.items import SplitName


@dataclass(frozen=True, kw_only=True)
class Job:
    """Blocks of items that one worker is to score for one recipe."""

    recipe: Recipe
    split: SplitName
    todo: tuple[int, ...]
    """Blocks that are not recorded yet."""
    alone: bool = False
    """Whether no other may share its batch: a worker died over it."""


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What a worker found for one block."""

    block: int
    outcomes: Mapping[str, Outcome]
    """By task."""
    materialize_seconds: float
    evaluate_seconds: float
    warnings: tuple[str, ...] = ()
    """What the worker's user should know, such as a damaged entry of the cache."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A candidate of the search that has ended."""

    number: int
    recipe: Recipe
    state: Literal["complete", "failed"]
    scored: Scored | None
    """Where complete."""
    materialize_seconds: float
    started: datetime
    ended: datetime
    error: str | None
