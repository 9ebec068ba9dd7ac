"""RAM and RAM+: what several vectors change is averaged (arXiv 2601.13572)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.rule import CombineRule

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class Ram(CombineRule):
    """Divide what several vectors keep by their number; keep what one alone does as it is."""

    name: ClassVar[str] = "ram"
    alone: ClassVar[str] = "changed"
    beside: ClassVar[tuple[str, ...]] = ("changed",)

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector's share of the mean."""
        return _share(vectors, shape, rescale=0.0)


@dataclass(frozen=True)
class RamPlus(CombineRule):
    """Do as RAM, and enlarge what a vector alone keeps by 1 + r·min(ρ, α), with ρ the number of
    its weights that others keep too, over the number that it keeps alone.

    Of each tensor by itself, as mergekit's ``ramplus_tl`` does.
    """

    name: ClassVar[str] = "ram-plus"
    alone: ClassVar[str] = "changed"
    beside: ClassVar[tuple[str, ...]] = ("changed",)
    rescale: ClassVar[float] = 0.1
    """r."""
    most_ratio: ClassVar[float] = 0.2
    """α."""

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector's share of the mean, and its own weights enlarged."""
        return _share(vectors, shape, rescale=self.rescale, most_ratio=self.most_ratio)


def _share(
    vectors: Sequence[Kept | None], shape: Sequence[int], *, rescale: float, most_ratio: float = 0.0
) -> list[Kept | None]:
    import torch

    from cabs_search.merging.sparse import Kept

    numel = math.prod(shape)
    count = torch.zeros(numel)
    for vector in vectors:
        if vector is not None:
            count[vector.nonzero[0]] += 1
    left: list[Kept | None] = []
    for vector in vectors:
        if vector is None:
            left.append(None)
            continue
        positions, values = vector.nonzero
        meeting = count[positions]
        alone = int((meeting == 1).sum())
        ratio = (len(values) - alone) / max(alone, 1)
        own = torch.where(meeting == 1, 1 + rescale * min(ratio, most_ratio), 1 / meeting)
        left.append(Kept.at(positions, values * own, numel))
    return left
