"""A combine rule: a frozen value that says what is left of pruned vectors before they are
summed, and what λ weighs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cabs_search.merging.sparse import Kept

Floats = npt.NDArray[np.float64]


class CombineRule:
    """Base of combine rules."""

    name: ClassVar[str]
    alone: ClassVar[str]
    """Mask rule that it has where a method's name is its own alone."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Mask rules that ``compare --over method`` runs it with; none: all that it compares."""
    experts: ClassVar[int | None] = None
    """Number of experts that it merges; None: any."""
    normalizes: ClassVar[bool] = False
    """True if λ are divided by their sum."""
    has_one_lambda: ClassVar[bool] = False
    """True if each vector has an equal part of one result, so that a search has one λ for all."""
    weighs: ClassVar[Literal["none", "vectors", "models"]] = "none"
    """Things that ``factors`` weighs by λ: task vectors, or whole models; none: λ are factors."""

    def combine(self, vectors: Sequence[Kept | None], shape: Sequence[int]) -> list[Kept | None]:
        """Return what is left of each vector on one tensor, so that merged = base + Σ λᵢ times it.

        λ has no part in it: what is cached once serves every λ.

        Args:
            vectors: what each keeps of the tensor.
            shape: the tensor's shape.

        """
        raise NotImplementedError

    def factors(self, lambdas: Sequence[float], products: Floats) -> Sequence[float]:
        """Return the factor of each task vector, or model, on one tensor, from λ and angles.

        Only of a rule that ``weighs``.

        Args:
            lambdas: of each vector, not all of them 0.
            products: inner products of the vectors, or models, [vectors, vectors].

        """
        raise NotImplementedError

    def weigh(
        self, lambdas: Mapping[str, float], products: Floats | None
    ) -> tuple[dict[str, float], float]:
        """Return factors by expert, and the base's, on one tensor.

        Args:
            lambdas: by expert; all of them 0: nothing is added to the base.
            products: as of ``factors``; None of a rule that weighs nothing.

        """
        if products is None or not any(lambdas.values()):
            return dict(lambdas), 1.0
        found = [float(factor) for factor in self.factors(list(lambdas.values()), products)]
        of_base = sum(found) if self.weighs == "models" else 1.0  # Σ cᵢ·(base + τᵢ)
        return dict(zip(lambdas, found, strict=True)), of_base
