"""Multi-SLERP: the weighted mean direction of the vectors with their weighted mean length.

Source: mergekit's ``multislerp`` with a base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from cabs_search.merging.combine.plain_sum import Sum
from cabs_search.merging.combine.rule import Floats

LEAST = 1e-6
"""Length of a weighted sum of unit vectors, as a share of Σ |λ|, below which it has no
direction.
"""


@dataclass(frozen=True)
class MultiSlerp(Sum):
    """Give the weighted sum of the tensor's unit vectors the weighted mean of their lengths.

    Of two vectors with equal λ it is the middle of spherical interpolation. Where directions
    cancel, nothing is left.
    """

    name: ClassVar[str] = "multi-slerp"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)
    weighs: ClassVar[Literal["none", "vectors", "models"]] = "vectors"

    def factors(self, lambdas: Sequence[float], products: Floats) -> Sequence[float]:
        """Return λᵢ/‖τᵢ‖ · (Σ λⱼ·‖τⱼ‖/N) / ‖Σ λⱼ·τⱼ/‖τⱼ‖‖ of each vector."""
        weights, norms = np.array(lambdas), np.sqrt(products.diagonal())
        units = np.divide(weights, norms, out=np.zeros(len(norms)), where=norms > 0)
        length = float(np.sqrt(max(units @ products @ units, 0.0)))
        if length <= LEAST * np.abs(weights).sum():
            return [0.0] * len(norms)
        factors: list[float] = (units * (weights @ norms / len(norms) / length)).tolist()
        return factors
