"""Karcher mean: the models' mean direction on the sphere, with their mean length.

Source: mergekit's ``karcher`` (arXiv 2603.04972), without weights there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from cabs_search.merging.combine.plain_sum import Sum
from cabs_search.merging.combine.rule import Floats

STEPS = 10
"""Steps towards the mean, at most; mergekit's default, as is ``LEAST``."""
LEAST = 1e-5
"""Length of a step, or angle, or length of a tensor, that counts as 0."""


@dataclass(frozen=True)
class Karcher(Sum):
    """Take the point of the sphere to which each tensor's directions are nearest: its weighted
    squares of angles are least.

    All points on the way are sums of the models, so that it is found from inner products alone.
    """

    name: ClassVar[str] = "karcher"
    beside: ClassVar[tuple[str, ...]] = ("task-arithmetic",)
    normalizes: ClassVar[bool] = True
    weighs: ClassVar[Literal["none", "vectors", "models"]] = "models"

    def factors(self, lambdas: Sequence[float], products: Floats) -> Sequence[float]:
        """Return the factor of each model; a model whose tensor is 0 counts for the length only."""
        weights, norms = np.array(lambdas), np.sqrt(products.diagonal())
        used = norms > LEAST
        shares = weights * used
        if abs(shares.sum()) <= LEAST:
            return lambdas
        inverse = np.divide(1.0, norms, out=np.zeros(len(norms)), where=used)
        cosines = products * np.outer(inverse, inverse)
        mean = _mean(shares / shares.sum(), cosines, int(used.argmax()))
        factors: list[float] = (mean * inverse * (weights @ norms)).tolist()
        return factors


def _mean(shares: Floats, cosines: Floats, first: int) -> Floats:
    """Return the mean direction as factors of unit vectors.

    Args:
        shares: weights that sum up to 1, [vectors].
        cosines: of the angles between the unit vectors, [vectors, vectors].
        first: place of the vector to begin with where the weighted sum is 0.

    """

    def length(factors: Floats) -> float:
        return math.sqrt(max(float(factors @ cosines @ factors), 0.0))

    size = length(shares)
    mean = shares / size if size >= LEAST else np.eye(len(shares))[first]
    for _ in range(STEPS):
        towards = (cosines @ mean).clip(-1, 1)
        angles = np.arccos(towards)
        sines = np.sin(angles)
        # at a half turn, as at none, there is no direction to go
        pulls = shares * np.divide(angles, sines, out=np.zeros(len(sines)), where=sines >= LEAST)
        step = pulls - (pulls @ towards) * mean
        size = length(step)
        if size < LEAST:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / max(length(mean), LEAST)
    return mean
