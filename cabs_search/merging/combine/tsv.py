"""TSV-M: task singular vectors, made orthogonal to those of other tasks (arXiv 2412.00081)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.rule import CombineRule
from cabs_search.merging.combine.singular import singular

if TYPE_CHECKING:
    from torch import Tensor

    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class Tsv(CombineRule):
    """Keep each matrix's largest singular values, 1/N of their number, and turn all vectors'
    singular vectors together as little as makes them orthogonal.

    What is no matrix, or a matrix with fewer rows or columns than there are vectors, is averaged.
    """

    name: ClassVar[str] = "tsv"
    alone: ClassVar[str] = "task-arithmetic"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector's part of the merged matrix."""
        import torch

        from cabs_search.merging.sparse import Kept

        count = len(vectors)
        if len(shape) != 2 or min(shape) < count:
            return [None if v is None else v.scaled(1 / count) for v in vectors]
        kept = [v for v in vectors if v is not None]
        parts = [singular(v.dense().reshape(*shape), min(shape) // count) for v in kept]
        if not parts:
            return [None] * count
        left = _orthogonal(torch.cat([part[0] for part in parts], dim=1))
        right = _orthogonal(torch.cat([part[2] for part in parts], dim=1))
        sizes = [len(part[1]) for part in parts]
        merged = iter(
            Kept(((u * values) @ v.T).reshape(-1), None)
            for u, (_, values, _), v in zip(
                left.split(sizes, dim=1), parts, right.split(sizes, dim=1), strict=True
            )
        )
        return [None if v is None else next(merged) for v in vectors]


def _orthogonal(columns: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns (Procrustes), of the same shape."""
    import torch

    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest
