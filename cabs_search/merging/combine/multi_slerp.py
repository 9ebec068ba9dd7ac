"""Multi-SLERP: the mean direction of the vectors with their mean length.

Source: mergekit's ``multislerp`` with a base and equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.gram import gram
from cabs_search.merging.combine.rule import CombineRule

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept

LEAST = 1e-6
"""Length of the mean of unit vectors below which it has no direction."""


@dataclass(frozen=True)
class MultiSlerp(CombineRule):
    """Scale each vector to one length, so that their sum is the mean direction of the tensor's
    vectors, as long as they are in the mean.

    Of two vectors it is the middle of spherical interpolation. Where directions cancel, nothing is
    left.
    """

    name: ClassVar[str] = "multi-slerp"
    alone: ClassVar[str] = "task-arithmetic"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector, rescaled."""
        products = gram(vectors, math.prod(shape))
        norms = products.diagonal().sqrt()
        inverse = norms.reciprocal().nan_to_num(posinf=0.0)
        length = float((inverse @ products @ inverse).clamp(min=0).sqrt())  # of the units' sum
        if length < LEAST * len(vectors):
            return [None] * len(vectors)
        scales = (norms.mean() / length * inverse).tolist()
        return [None if v is None else v.scaled(s) for v, s in zip(vectors, scales, strict=True)]
