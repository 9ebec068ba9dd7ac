"""WUDI: the matrix that interferes least with each vector's own rows (arXiv 2503.08099)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.combine.rule import CombineRule

if TYPE_CHECKING:
    from torch import Tensor

    from cabs_search.merging.sparse import Kept


@dataclass(frozen=True)
class Wudi(CombineRule):
    """Minimize Σ ‖(M - τᵢ)·τᵢᵀ‖²/‖τᵢ‖² over matrices M; average what is no matrix.

    The paper takes 300 steps of Adam from Σ τᵢ. The loss is a least squares problem, so that its
    least is written down: M = Σ τᵢ·Gᵢ·(Σ Gⱼ)⁺, Gᵢ = τᵢᵀ·τᵢ/‖τᵢ‖². Gradient descent from Σ τᵢ ends
    there. Each summand is one vector's part.
    """

    name: ClassVar[str] = "wudi"
    alone: ClassVar[str] = "task-arithmetic"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return each vector's part of the merged matrix."""
        from cabs_search.merging.sparse import Kept

        if len(shape) != 2:
            return [None if v is None else v.scaled(1 / len(vectors)) for v in vectors]
        whole = [None if v is None else v.dense().double().reshape(*shape) for v in vectors]
        grams = [_gram(tau) for tau in whole if tau is not None]
        if not grams:
            return [None] * len(vectors)
        inverse, left = _inverse(sum(grams[1:], grams[0]), max(shape)), iter(grams)
        parts = [None if tau is None else tau @ (next(left) @ inverse) for tau in whole]
        return [None if p is None else Kept(p.float().reshape(-1), None) for p in parts]


def _gram(tau: Tensor) -> Tensor:
    """Return τᵀ·τ/‖τ‖², [columns, columns]; 0 of a vector that is 0."""
    products = tau.T @ tau
    trace = float(products.trace())  # ‖τ‖²
    return products / trace if trace > 0 else products


def _inverse(gram: Tensor, size: int) -> Tensor:
    """Return the pseudoinverse without directions whose σ is 0 but for rounding in float32."""
    import torch

    values, directions = torch.linalg.eigh(gram)
    least = values[-1] * (size * torch.finfo(torch.float32).eps) ** 2
    kept = values > least
    columns = directions[:, kept]
    inverse: Tensor = (columns / values[kept]) @ columns.T
    return inverse
