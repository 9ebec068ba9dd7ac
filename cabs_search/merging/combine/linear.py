"""The weighted mean of the experts, without the base (arXiv 2203.05482)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.combine.plain_sum import Sum


@dataclass(frozen=True)
class Linear(Sum):
    """Add up vectors whose λ are divided by their sum."""

    name: ClassVar[str] = "linear"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)
    normalizes: ClassVar[bool] = True
