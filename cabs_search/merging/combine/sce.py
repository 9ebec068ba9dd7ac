"""SCE: matrices weighed by their squares, minority signs erased (arXiv 2408.07990)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.rule import CombineRule
from cabs_search.merging.combine.ties import elect

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class Sce(CombineRule):
    """Take the mean of the weights whose sign is elected, each vector weighed by its Σ τ² of the
    tensor.

    SCE's calculate and erase; its select is the mask rule ``variance``.
    """

    name: ClassVar[str] = "sce"
    alone: ClassVar[str] = "variance"
    beside: ClassVar[tuple[str, ...]] = ("variance",)

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector's share of the weighted mean."""
        import torch

        from cabs_search.merging.sparse import Kept

        numel = math.prod(shape)
        squares = [0.0 if v is None else float(v.values.double().square().sum()) for v in vectors]
        agreeing = elect(vectors, numel)
        total = torch.zeros(numel, dtype=torch.float64)
        for square, part in zip(squares, agreeing, strict=True):
            if part is not None:
                total[part[0]] += square
        left: list[Kept | None] = []
        for square, part in zip(squares, agreeing, strict=True):
            if part is None:
                left.append(None)
            else:
                positions, values = part
                weights = (square / total[positions]).float()
                left.append(Kept.at(positions, values * weights, numel))
        return left
