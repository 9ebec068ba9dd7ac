"""Pareto front: what no other candidate beats in everything. More is better in every objective."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def pareto_front(values: Floats) -> npt.NDArray[np.bool_]:
    """Tell which candidates are on the front, [candidates].

    A candidate is off it if another is at least as good in every objective and better in one.

    Args:
        values: [candidates, objectives].

    """
    is_on = np.ones(len(values), dtype=bool)
    for place, own in enumerate(values):
        rivals = values[is_on]
        beaten = (rivals >= own).all(axis=1) & (rivals > own).any(axis=1)
        is_on[place] = not beaten.any()
    return is_on


def crowding_distance(values: Floats) -> Floats:
    """Return how far each candidate's neighbours on the front are apart, [candidates].

    The distance between the next smaller and the next larger value, as a share of the objective's
    range, summed over objectives; infinite at an end of any. Source: Deb, Pratap, Agarwal and
    Meyarivan, A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE Transactions on
    Evolutionary Computation 6 (2002).

    Args:
        values: [candidates, objectives].

    """
    distance = np.zeros(len(values))
    for column in values.T:
        span = column.max() - column.min()
        if span == 0:
            continue
        order = np.argsort(column, kind="stable")
        gaps = np.full(len(column), np.inf)
        gaps[1:-1] = (column[order][2:] - column[order][:-2]) / span
        distance[order] += gaps
    return distance
