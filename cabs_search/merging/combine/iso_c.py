"""Iso-C: the sum of the vectors with all its singular values alike (arXiv 2502.04959)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.rule import CombineRule
from cabs_search.merging.combine.singular import singular

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class IsoC(CombineRule):
    """Replace each singular value above 0 of a matrix's sum by their mean; average what is no
    matrix.

    The result is one vector, no sum of one for each expert: each has an equal part of it.
    """

    name: ClassVar[str] = "iso-c"
    alone: ClassVar[str] = "task-arithmetic"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)
    has_one_lambda: ClassVar[bool] = True

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return 1/N of the merged tensor for each vector."""
        import torch

        from cabs_search.merging.sparse import Kept

        whole = [v.dense() for v in vectors if v is not None]
        if not whole:
            return [None] * len(vectors)
        total = torch.stack(whole).sum(dim=0)
        if len(shape) == 2 and total.any():
            left, values, right = singular(total.reshape(*shape))
            total = (left @ right.T).reshape(-1) * values.mean()
        else:
            total = total / len(vectors)
        return [Kept(total / len(vectors), None)] * len(vectors)
