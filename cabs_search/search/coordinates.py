"""Places of Optuna's parameters in a space: numbers from -1 to 1, and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

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
Key: TypeAlias = tuple[tuple[str, str], ...]
"""Parameters and their values as text."""
Number = TypeVar("Number", float, Floats)
KEYS_KEPT = 1 << 14
"""Keys to keep: a sampler asks for those of all trials at every proposal."""


@dataclass(frozen=True)
class Coordinates:
    """Places of trials: numbers scaled to [-1, 1], and 1 for each choice taken.

    A number whose name differs only in what stands before a colon, as the λ of a method with a
    range of its own, is the same coordinate.
    """

    space: Space

    def of(self, points: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
        """Return numbers [points, coordinates] and choices [points, choices]."""
        numbers, choices = dict[str, int](), dict[tuple[str, str], int]()
        for name, kind in self.space.items():
            if isinstance(kind, CategoricalDistribution):
                for value in kind.choices:
                    choices.setdefault((name, str(value)), len(choices))
            else:
                numbers.setdefault(_plain(name), len(numbers))
        x, arms = np.zeros((len(points), len(numbers))), np.zeros((len(points), len(choices)))
        for name, kind in self.space.items():
            rows = [row for row, params in enumerate(points) if name in params]
            values = [points[row][name] for row in rows]
            if isinstance(kind, CategoricalDistribution):
                for row, value in zip(rows, values, strict=True):
                    if (name, str(value)) in choices:
                        arms[row, choices[name, str(value)]] = 1.0
            else:
                x[rows, numbers[_plain(name)]] = 2 * share_of(np.array(values), kind) - 1
        return x, arms


def _plain(name: str) -> str:
    return name.rpartition(":")[2]


def share_of(value: Number, kind: FloatDistribution | IntDistribution) -> Number:
    """Return where in its range a number is, or each of several, from 0 to 1."""
    low, high = float(kind.low), float(kind.high)
    if kind.log:
        low, high, value = math.log(low), math.log(high), np.log(value)
    return (value - low) / (high - low)


def value_at(share: float, kind: BaseDistribution) -> Any:
    """Return the value at a place in a range, from 0 to 1."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices[min(int(share * len(kind.choices)), len(kind.choices) - 1)]
    low, high = float(kind.low), float(kind.high)
    if kind.log:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    if kind.step:
        value = low + round((value - low) / kind.step) * kind.step
    value = min(max(value, low), high)
    return round(value) if isinstance(kind, IntDistribution) else value


def key_of(params: Mapping[str, Any]) -> Key:
    """Return a name of a point, the same for values that differ by rounding alone."""
    return _key_of(tuple(params.items()))


@lru_cache(KEYS_KEPT)
def _key_of(items: tuple[tuple[str, Any], ...]) -> Key:
    texts = {n: f"{v:.9g}" if isinstance(v, float) else str(v) for n, v in items}
    return tuple(sorted(texts.items()))
