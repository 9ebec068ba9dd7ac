"""Samplers that ``search.sampler`` may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from cabs_search.search.samplers.random import random
from cabs_search.search.samplers.tpe import tpe

if TYPE_CHECKING:
    import optuna

MakeSampler: TypeAlias = Callable[[int, int], "optuna.samplers.BaseSampler"]
"""Makes a sampler from a seed and a number of startup trials, for samplers that learn."""

SAMPLERS: dict[str, MakeSampler] = {"tpe": tpe, "random": random}


def find_sampler(name: str) -> MakeSampler:
    """Return the sampler of that name.

    Raises:
        ValueError: there is none.

    """
    if name not in SAMPLERS:
        known = " or ".join(map(repr, SAMPLERS))
        raise ValueError(f"search.sampler: Input should be {known}, but got {name!r}")
    return SAMPLERS[name]
