"""Samplers that ``search.sampler`` may name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeAlias

import optuna

from cabs_search.search.candidates import Candidates
from cabs_search.search.samplers.awa import awa
from cabs_search.search.samplers.cma_es import cma_es
from cabs_search.search.samplers.gp import gp
from cabs_search.search.samplers.grid import check_points, grid
from cabs_search.search.samplers.nsga import nsga2, nsga3
from cabs_search.search.samplers.quasi_random import quasi_random
from cabs_search.search.samplers.random import random
from cabs_search.search.samplers.surface import surface
from cabs_search.search.samplers.tpe import tpe
from cabs_search.search.space import size
from cabs_search.spec.study import Spec

MakeSampler: TypeAlias = Callable[[int, int], optuna.samplers.BaseSampler]
"""Makes a sampler from a seed and a number of startup trials, for samplers that learn."""

SAMPLERS: dict[str, MakeSampler] = {
    "surface": surface,
    "tpe": tpe,
    "gp": gp,
    "cma-es": cma_es,
    "awa": awa,
    "random": random,
    "quasi-random": quasi_random,
    "grid": grid,
    "nsga2": nsga2,
    "nsga3": nsga3,
}
FOR_ONE = frozenset({"surface", "cma-es", "awa"})
"""Samplers that take one objective only."""
FOR_SEVERAL = frozenset({"nsga2", "nsga3"})
"""Samplers that take several objectives only."""
FOR_SUMS = frozenset({"surface"})
"""Samplers that take a weighted sum of the tasks' metrics only."""
NOT_FOR_STACKS = frozenset({"surface", "awa"})
"""Samplers that search λ alone, or cannot search which layers are in a stack: near a good one they
change numbers a little.
"""
SCORED_IN_FULL = frozenset({"awa"})
"""Samplers whose candidates must all be scored in full."""
PACKAGES = {"cma-es": "cmaes", "awa": "cmaes"}
"""Packages, beside Optuna, that a sampler needs."""


def find_sampler(name: str) -> MakeSampler:
    """Return the sampler of that name.

    Raises:
        ValueError: there is none, or its package is not installed.

    """
    if name not in SAMPLERS:
        known = " or ".join(map(repr, SAMPLERS))
        raise ValueError(f"search.sampler: Input should be {known}, but got {name!r}")
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        package = PACKAGES[name]
        raise ValueError(
            f"search.sampler: {name!r} needs the package {package}; pip install {package}"
        )
    return SAMPLERS[name]


def check_sampler(spec: Spec) -> None:
    """Raise ValueError if there is no such sampler, or the space or the pruner is not for it."""
    find_sampler(spec.search.sampler_used)
    if spec.search.sampler_used in SCORED_IN_FULL and spec.search.pruner_used:
        raise ValueError(
            f"search.pruner: {spec.search.sampler_used} learns from candidates that are scored in"
            f" full; take null in place of {spec.search.pruner_used}"
        )
    if spec.space.stack and spec.search.sampler_used in NOT_FOR_STACKS:
        raise ValueError(
            f"search.sampler: {spec.search.sampler_used} does not search stacks of layers; take"
            " tpe, cma-es, nsga2 or random"
        )


def check_size(spec: Spec) -> None:
    """Raise ValueError if a space whose layers are counted is too large for its sampler."""
    if spec.search.sampler_used == "grid":
        check_points(size(Candidates.of(spec)))
