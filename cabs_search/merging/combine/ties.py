"""TIES: an election of signs where pruned vectors meet (arXiv 2306.01708)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.rule import CombineRule

if TYPE_CHECKING:
    from torch import Tensor

    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class Ties(CombineRule):
    """Keep the weights whose sign is elected, each divided by how many agree: their mean."""

    name: ClassVar[str] = "ties"
    alone: ClassVar[str] = "magnitude-vector"
    beside: ClassVar[tuple[str, ...]] = (
        *("magnitude-vector", "magnitude", "breadcrumbs", "dare", "della", "cabs"),
    )

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector's share of the mean."""
        return _elect(vectors, math.prod(shape), mean=True)


@dataclass(frozen=True)
class TiesSum(CombineRule):
    """Keep the weights whose sign is elected."""

    name: ClassVar[str] = "ties-sum"
    alone: ClassVar[str] = "magnitude-vector"
    beside: ClassVar[tuple[str, ...]] = ("magnitude-vector", "magnitude")

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector's weights that agree."""
        return _elect(vectors, math.prod(shape), mean=False)


def _elect(vectors: Sequence[Kept | None], numel: int, *, mean: bool) -> list[Kept | None]:
    """Return each vector's weights whose sign is elected, or their shares of the mean."""
    import torch

    from cabs_search.merging.sparse import Kept

    agreeing = elect(vectors, numel)
    count = torch.zeros(numel)
    for part in agreeing:
        if part is not None:
            count[part[0]] += 1
    left: list[Kept | None] = []
    for part in agreeing:
        if part is None:
            left.append(None)
        else:
            positions, values = part
            left.append(Kept.at(positions, values / count[positions] if mean else values, numel))
    return left


def elect(vectors: Sequence[Kept | None], numel: int) -> list[tuple[Tensor, Tensor] | None]:
    """Elect the sign of the vectors' sum at each position; a sum of 0 counts as +.

    Returns:
        Positions and values of each vector's weights that have that sign; None where the vector
        keeps nothing.

    """
    import torch

    parts = [None if vector is None else vector.nonzero for vector in vectors]
    total = torch.zeros(numel)
    for part in parts:
        if part is not None:
            positions, values = part
            total[positions] += values
    agreeing: list[tuple[Tensor, Tensor] | None] = []
    for part in parts:
        if part is None:
            agreeing.append(None)
        else:
            positions, values = part
            agrees = (values > 0) == (total[positions] >= 0)
            agreeing.append((positions[agrees], values[agrees]))
    return agreeing
