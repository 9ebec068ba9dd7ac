"""TIES: an election of signs where pruned vectors meet (arXiv 2306.01708)."""

from __future__ import annotations

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
    beside: ClassVar[tuple[str, ...]] = (
        *("magnitude-vector", "magnitude", "breadcrumbs", "dare", "della", "cabs"),
    )

    def combine(self, vectors: Sequence[Kept | None], numel: int) -> list[Kept | None]:
        """Return each vector's share of the mean."""
        return _elect(vectors, numel, mean=True)


@dataclass(frozen=True)
class TiesSum(CombineRule):
    """Keep the weights whose sign is elected."""

    name: ClassVar[str] = "ties-sum"
    beside: ClassVar[tuple[str, ...]] = ("magnitude-vector", "magnitude")

    def combine(self, vectors: Sequence[Kept | None], numel: int) -> list[Kept | None]:
        """Return each vector's weights that agree."""
        return _elect(vectors, numel, mean=False)


def _elect(vectors: Sequence[Kept | None], numel: int, *, mean: bool) -> list[Kept | None]:
    """Return each vector's weights whose sign is that of the vectors' sum; a sum of 0 counts as
    +.
    """
    import torch

    from cabs_search.merging.sparse import Kept

    parts = [None if vector is None else _nonzero(vector) for vector in vectors]
    total, count = torch.zeros(numel), torch.zeros(numel)
    for part in parts:
        if part is not None:
            positions, values = part
            total[positions] += values
    agreeing: list[tuple[Tensor, Tensor] | None] = []
    for part in parts:
        if part is None:
            agreeing.append(None)
            continue
        positions, values = part
        agrees = (values > 0) == (total[positions] >= 0)
        agreeing.append((positions[agrees], values[agrees]))
        count[positions[agrees]] += 1
    left: list[Kept | None] = []
    for part in agreeing:
        if part is None:
            left.append(None)
        else:
            positions, values = part
            left.append(Kept.at(positions, values / count[positions] if mean else values, numel))
    return left


def _nonzero(kept: Kept) -> tuple[Tensor, Tensor]:
    """Return positions and values, without weights that are 0."""
    if kept.positions is not None:
        return kept.positions, kept.values
    positions = kept.values.nonzero().reshape(-1)
    return positions, kept.values[positions]
