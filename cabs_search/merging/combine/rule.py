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
    beside: ClassVar[tuple[str, ...]] = ()
    """Mask rules that ``compare --over method`` runs it with; none: all."""

    def combine(self, vectors: Sequence[Kept | None], numel: int) -> list[Kept | None]:
        """Return what is left of each vector on one tensor, so that merged = base + Σ λᵢ times it.

        λ has no part in it: what is cached once serves every λ.

        Args:
            vectors: what each keeps of the tensor.
            numel: the tensor's number of weights.

        """
        raise NotImplementedError
