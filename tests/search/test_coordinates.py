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


def test_numbers_of_an_owner_are_drawn_about_one_value_in_every_second_point() -> None:
    names = [f"lambda.{expert}.{group}" for expert in "ab" for group in range(5)]
    coordinates = Coordinates({name: FloatDistribution(0.0, 2.0) for name in names})
    owners = {name: name[:8] for name in names}
    x = coordinates.draw(coordinates.space, 2000, np.random.default_rng(0), owners).x
    for expert in (x[:, :5], x[:, 5:]):
        assert expert.mean(axis=1)[1::2].std() == pytest.approx(np.sqrt(1 / 15), rel=0.1)
        spread = np.sort(expert.std(axis=1)[::2])
        assert spread[50] < 0.05, "some lie as good as together"
        assert expert.mean(axis=1)[::2].std() > 1.25 * expert.mean(axis=1)[1::2].std()
    together = np.corrcoef(x[:, :5].mean(axis=1), x[:, 5:].mean(axis=1))[0, 1]
    assert abs(together) < 0.1, "owners are drawn apart"
