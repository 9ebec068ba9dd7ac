"""SLERP of two models, and of two task vectors: along the arc between them.

Source: mergekit's ``slerp``, and its ``nuslerp`` with a base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from cabs_search.merging.combine.plain_sum import Sum
from cabs_search.merging.combine.rule import Floats

LEAST_NORM = 1e-8
"""Length of a tensor that counts as 0: it is at right angles to any other."""


@dataclass(frozen=True)
class Slerp(Sum):
    """Go from one model to the other on the arc, by the second's share of λ, in each tensor."""

    name: ClassVar[str] = "slerp"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)
    experts: ClassVar[int | None] = 2
    normalizes: ClassVar[bool] = True
    weighs: ClassVar[Literal["none", "vectors", "models"]] = "models"
    most_cosine: ClassVar[float] = 0.9995
    """|cos| above which the way is straight."""

    def factors(self, lambdas: Sequence[float], products: Floats) -> Sequence[float]:
        """Return the factors of both ends; ``lambdas`` are 1 - t and t."""
        lengths = [math.sqrt(products[i, i]) for i in range(2)]
        cosine = 0.0
        if min(lengths) > LEAST_NORM:
            cosine = float(products[0, 1]) / math.prod(lengths)
        if abs(cosine) > self.most_cosine:
            return lambdas
        angle = math.acos(cosine)
        return [math.sin(share * angle) / math.sin(angle) for share in lambdas]


@dataclass(frozen=True)
class NuSlerp(Slerp):
    """Go from one task vector to the other on the arc."""

    name: ClassVar[str] = "nuslerp"
    weighs: ClassVar[Literal["none", "vectors", "models"]] = "vectors"
    # Nearer to a half turn the arc has no direction: factors would be rounding errors, enlarged.
    most_cosine: ClassVar[float] = 1 - 1e-10
