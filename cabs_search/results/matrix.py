"""Paired differences of every two candidates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cabs_search.results.panel import Panel

MAX_COMPARED = 40
"""Most candidates of which every pair is compared."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Every candidate against every other one."""

    labels: tuple[str, ...]
    estimate: tuple[tuple[float, ...], ...]
    """Score of the row minus the column's."""
    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]
    """Ends of 95 % intervals for all pairs together."""
    p_holm: tuple[tuple[float, ...], ...]
    """p adjusted for all pairs; 1 on the diagonal."""


def matrix(panel: Panel, names: Sequence[str], labels: Sequence[str]) -> Matrix | None:
    """Compare all pairs; None for one candidate, or more than MAX_COMPARED.

    Args:
        panel: holds the candidates.
        names: their names in the panel.
        labels: their names in the matrix.

    """
    size = len(names)
    if not 2 <= size <= MAX_COMPARED:
        return None
    places = list(itertools.combinations(range(size), 2))
    contrasts = panel.contrasts([(names[i], names[j]) for i, j in places], others=False)
    estimate, low, high = (np.zeros((size, size)) for _ in range(3))
    p_holm = np.ones((size, size))
    for (i, j), contrast in zip(places, contrasts, strict=True):
        # 0.0 - x instead of -x: no negative zeros
        estimate[i, j], estimate[j, i] = contrast.estimate, 0.0 - contrast.estimate
        low[i, j], high[i, j] = contrast.interval
        low[j, i], high[j, i] = -contrast.interval[1], -contrast.interval[0]
        p_holm[i, j] = p_holm[j, i] = contrast.p_holm
    return Matrix(
        labels=tuple(labels),
        estimate=tuple(map(tuple, estimate.tolist())),
        low=tuple(map(tuple, low.tolist())),
        high=tuple(map(tuple, high.tolist())),
        p_holm=tuple(map(tuple, p_holm.tolist())),
    )
