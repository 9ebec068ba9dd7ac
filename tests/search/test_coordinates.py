"""Places of points in a space, and back."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cabs_search.search.coordinates import Coordinates

SPACE = {
    "lambda.a": FloatDistribution(0.0, 2.0, step=0.5),
    "cabs:lambda.a": FloatDistribution(0.0, 6.0, step=0.1),
    "lambda.b": FloatDistribution(0.5, 1.5),
    "size": IntDistribution(1, 4),
    "method": CategoricalDistribution(["ties", "dare", "cabs"]),
}


def test_drawn_places_are_those_of_the_points_that_they_stand_for() -> None:
    coordinates, random = Coordinates(SPACE), np.random.default_rng(0)
    assert coordinates.numbers == {"lambda.a": 0, "lambda.b": 1, "size": 2}
    branch = {name: SPACE[name] for name in ("lambda.a", "lambda.b", "size", "method")}
    drawn = coordinates.draw(branch, 40, random)
    near = coordinates.near(branch, drawn.rows([0, 1]), np.array([0.3, 0.1]), random)
    for places in (drawn, near):
        points = [coordinates.params(branch, *place) for place in zip(*places, strict=True)]
        for found, again in zip(places, coordinates.of(points), strict=True):
            assert found == pytest.approx(again)
        assert {point["method"] for point in points} <= {"ties", "dare", "cabs"}
    assert len({tuple(arms) for arms in drawn.arms}) == 3
    assert (near.arms == drawn.arms[[0, 0, 1, 1]]).all(), "no choice is changed"
    assert (near.x != drawn.x[[0, 0, 1, 1]]).any()
