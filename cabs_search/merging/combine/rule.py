"""A combine rule: a frozen value that says what is left of pruned vectors before they are
summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept


class CombineRule:
    """Base of combine rules."""

    name: ClassVar[str]
    alone: ClassVar[str]
    """Mask rule that it has where a method's name is its own alone."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Mask rules that ``compare --over method`` runs it with; none: all that it compares."""
    normalizes: ClassVar[bool] = False
    """True if λ are divided by their sum."""
    has_one_lambda: ClassVar[bool] = False
    """True if each vector has an equal part of one result, so that a search has one λ for all."""

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return what is left of each vector on one tensor, so that merged = base + Σ λᵢ times it.

        λ has no part in it: what is cached once serves every λ.

        Args:
            vectors: what each keeps of the tensor.
            shape: the tensor's shape.

        """
        raise NotImplementedError
