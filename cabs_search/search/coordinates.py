"""Places of Optuna's parameters in a space: numbers from -1 to 1, and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Floats: TypeAlias = npt.NDArray[np.float64]
Params: TypeAlias = dict[str, Any]
Space: TypeAlias = Mapping[str, BaseDistribution]
Key: TypeAlias = str
"""Parameters and their values as text."""
Number = TypeVar("Number", float, Floats)
KEYS_KEPT = 1 << 14
"""Keys to keep: a sampler asks for those of all trials at every proposal."""


class Places(NamedTuple):
    """Places of points."""

    x: Floats
    """Numbers, [points, numbers]."""
    arms: Floats
    """1 where a point has a choice, else 0, [points, choices]."""

    def rows(self, rows: Sequence[int]) -> Places:
        """Return some of the points."""
        return Places(self.x[rows], self.arms[rows])

    def joined(self, other: Places) -> Places:
        """Return these points and others."""
        return Places(*map(np.concatenate, zip(self, other, strict=True)))


@dataclass(frozen=True)
class Coordinates:
    """Places of trials: numbers scaled to [-1, 1], and 1 for each choice taken.

    A number whose name differs only in what stands before a colon, as the λ of a method with a
    range of its own, is the same coordinate.
    """

    space: Space

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Column of each number, by its name without what stands before a colon."""
        kinds = self.space.items()
        names = [n for n, kind in kinds if not isinstance(kind, CategoricalDistribution)]
        return {name: column for column, name in enumerate(dict.fromkeys(map(_plain, names)))}

    @cached_property
    def choices(self) -> Mapping[tuple[str, str], int]:
        """Column of each choice, by the parameter's name and the choice as text."""
        found = dict[tuple[str, str], int]()
        for name, kind in self.space.items():
            if isinstance(kind, CategoricalDistribution):
                for value in kind.choices:
                    found.setdefault((name, str(value)), len(found))
        return found

    def of(self, points: Sequence[Params]) -> Places:
        """Return the places of points that are given by their parameters."""
        places = self._empty(len(points))
        for name, kind in self.space.items():
            rows = [row for row, params in enumerate(points) if name in params]
            values = [points[row][name] for row in rows]
            if isinstance(kind, CategoricalDistribution):
                for row, value in zip(rows, values, strict=True):
                    if (name, str(value)) in self.choices:
                        places.arms[row, self.choices[name, str(value)]] = 1.0
            else:
                column = self.numbers[_plain(name)]
                places.x[rows, column] = 2 * share_of(np.array(values), kind) - 1
        return places

    def draw(
        self,
        branch: Space,
        count: int,
        rng: np.random.Generator,
        owners: Mapping[str, str] | None = None,
    ) -> Places:
        """Draw points from a branch: a part of the space's parameters and their choices.

        Args:
            branch: the branch.
            count: number of points.
            rng: what draws.
            owners: owners of some numbers. In every second point the numbers of an owner lie about
                one value, nearer or farther by chance; all else is drawn evenly.

        """
        places, owners = self._empty(count), owners or {}
        spread, centres = np.ones(count), dict[str, Floats]()
        if owners:
            spread[::2] = rng.random(len(spread[::2]))
            centres = {owner: rng.random(count) for owner in dict.fromkeys(owners.values())}
        for name, kind in branch.items():
            shares = rng.random(count)
            if name in owners:
                centre = centres[owners[name]]
                shares = centre + spread * (shares - centre)
            if isinstance(kind, CategoricalDistribution):
                columns = np.array([self.choices[name, str(value)] for value in kind.choices])
                chosen = columns[(shares * len(columns)).astype(np.intp)]
                places.arms[np.arange(count), chosen] = 1.0
            else:
                places.x[:, self.numbers[_plain(name)]] = 2 * _on_steps(shares, kind) - 1
        return places

    def near(
        self, branch: Space, places: Places, scales: Floats, rng: np.random.Generator
    ) -> Places:
        """Draw points of a branch near others, about half of whose numbers are changed.

        Args:
            branch: the branch that all of them are in.
            places: points to look around.
            scales: typical change of a number, as a share of its range, of each point drawn around
                each of ``places``.
            rng: what draws.

        """
        drawn = Places(*(np.repeat(part, len(scales), axis=0) for part in places))
        scale = np.tile(scales, len(places.x))
        for name, kind in branch.items():
            if isinstance(kind, CategoricalDistribution):
                continue
            column = drawn.x[:, self.numbers[_plain(name)]]
            is_changed = rng.random(len(column)) < max(0.5, 1 / len(branch))
            moved = (column + 1) / 2 + is_changed * scale * rng.normal(size=len(column))
            column[:] = 2 * _on_steps(np.clip(moved, 0, 1), kind) - 1
        return drawn

    def params(self, branch: Space, x: Floats, arms: Floats) -> Params:
        """Return the parameters of a point of a branch, given by its place."""
        found: Params = {}
        for name, kind in branch.items():
            if isinstance(kind, CategoricalDistribution):
                taken = [arms[self.choices[name, str(value)]] for value in kind.choices]
                found[name] = kind.choices[int(np.argmax(taken))]
            else:
                found[name] = value_at((float(x[self.numbers[_plain(name)]]) + 1) / 2, kind)
        return found

    def _empty(self, count: int) -> Places:
        return Places(np.zeros((count, len(self.numbers))), np.zeros((count, len(self.choices))))


def _plain(name: str) -> str:
    return name.rpartition(":")[2]


def share_of(value: Number, kind: FloatDistribution | IntDistribution) -> Number:
    """Return where in its range a number is, or each of several, from 0 to 1."""
    low, high = float(kind.low), float(kind.high)
    if kind.log:
        low, high, value = math.log(low), math.log(high), np.log(value)
    return (value - low) / (high - low)


def value_at(share: float, kind: FloatDistribution | IntDistribution) -> float | int:
    """Return the value at a place in a number's range, from 0 to 1."""
    low, high = float(kind.low), float(kind.high)
    if kind.log:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    if kind.step:
        value = low + round((value - low) / kind.step) * kind.step
    value = min(max(value, low), high)
    return round(value) if isinstance(kind, IntDistribution) else value


def _on_steps(shares: Floats, kind: FloatDistribution | IntDistribution) -> Floats:
    """Return the places nearest to some that are those of values a number can take."""
    low, high = float(kind.low), float(kind.high)
    if kind.log or not kind.step or low == high:
        return shares
    steps = (high - low) / kind.step
    places: Floats = np.round(shares * steps) / steps
    return places


def key_of(params: Mapping[str, Any]) -> Key:
    """Return a name of a point, the same for values that differ by rounding alone."""
    return _key_of(tuple(params.items()))


@lru_cache(KEYS_KEPT)
def _key_of(items: tuple[tuple[str, Any], ...]) -> Key:
    texts = [f"{n!r}: {v:.9g}" if isinstance(v, float) else f"{n!r}: {v!r}" for n, v in items]
    return ", ".join(sorted(texts))
