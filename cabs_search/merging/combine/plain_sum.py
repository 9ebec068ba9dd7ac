"""The plain sum of pruned vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.rule import CombineRule

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class Sum(CombineRule):
    """Add up: Σ λᵢ·τ̃ᵢ."""

    name: ClassVar[str] = "sum"
    alone: ClassVar[str] = "task-arithmetic"

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:  # noqa: ARG002
        """Return the vectors as they are."""
        return list(vectors)
