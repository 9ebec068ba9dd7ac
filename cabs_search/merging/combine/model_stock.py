"""Model Stock: the mean of the experts, as far from the base as their angles say
(arXiv 2403.19522).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cabs_search.merging.combine.gram import gram
from cabs_search.merging.combine.rule import CombineRule

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class ModelStock(CombineRule):
    """Take t/N of each vector: t = N·cos θ / (1 + (N - 1)·cos θ) of each tensor.

    θ is the angle between vectors, its cosine the mean over pairs. A mean below 0, of which the
    paper does not speak, counts as 0: the tensor stays the base's.
    """

    name: ClassVar[str] = "model-stock"
    alone: ClassVar[str] = "task-arithmetic"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return the share of each vector."""
        count = len(vectors)
        products = gram(vectors, math.prod(shape))
        norms = np.sqrt(products.diagonal())
        sizes = np.outer(norms, norms)
        cosines = np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0)
        pairs = [float(cosines[i, j]) for i in range(count) for j in range(i)]
        cosine = min(max(sum(pairs) / len(pairs), 0.0), 1.0) if pairs else 1.0
        if cosine == 0:
            return [None] * count
        ratio = count * cosine / (1 + (count - 1) * cosine)
        return [None if v is None else v.scaled(ratio / count) for v in vectors]
