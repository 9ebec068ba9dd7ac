"""Every point of the space, in random order: a part of it is a fair sample of the whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cabs_search.common.formats import count_text
from cabs_search.search.coordinates import key_of

Branch: TypeAlias = Mapping[str, Sequence[Any]]
"""Values of each parameter of a part of the space whose points have the same parameters."""
MOST_POINTS = 1_000_000
"""Points that a grid may have."""


def grid(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Make the sampler; ``cover`` tells it the space."""
    return GridSampler(seed)


def check_points(count: int) -> None:
    """Raise ValueError if a space has too many points for a grid."""
    if count > MOST_POINTS:
        raise ValueError(
            f"search.sampler: grid needs a space of at most {MOST_POINTS:,} points, but got"
            f" {count_text(count)}; raise space.lambda.step, or search fewer settings or layers"
        )


class GridSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Draws points without repetition; points that trials had already are left out.

    Optuna's grid has every parameter at every point: it would have a method once for each value of
    a setting that the method does not have. After the last point, proposals are random.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._branches: list[Branch] = []
        self._starts: list[int] = [0]
        """Number of the first point of each branch, and behind the last."""
        self._order = self._rng.permutation(0)
        """Numbers of points, as they are drawn; ``_next`` is the place of the next one."""
        self._next = 0
        self._drawn: dict[int, Mapping[str, Any]] = {}
        """Points of trials that have not ended, by number."""

    def cover(self, branches: Sequence[Branch]) -> None:
        """Lay the grid.

        Args:
            branches: parts of the space.

        Raises:
            ValueError: there are too many points.

        """
        sizes = [math.prod(map(len, branch.values())) for branch in branches]
        check_points(sum(sizes))
        self._branches = list(branches)
        self._starts = [0, *itertools.accumulate(sizes)]
        self._order = self._rng.permutation(sum(sizes))

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return none: a point is drawn with its first parameter."""
        return {}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a parameter of the trial's point."""
        if trial.number not in self._drawn:
            self._drawn[trial.number] = self._draw(study)
        value = self._drawn[trial.number].get(param_name)
        if value is None:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        return value

    def after_trial(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        state: TrialState,  # noqa: ARG002
        values: Sequence[float] | None,  # noqa: ARG002
    ) -> None:
        """Forget the trial's point."""
        self._drawn.pop(trial.number, None)

    def reseed_rng(self) -> None:
        """Take another seed, as Optuna asks of parallel workers."""
        self._rng = np.random.default_rng()
        self._rng.shuffle(self._order[self._next :])
        self._random.reseed_rng()

    def _draw(self, study: Study) -> Mapping[str, Any]:
        """Take the next point that no trial has; nothing if there is none."""
        had = {key_of(trial.params) for trial in study.get_trials(deepcopy=False)}
        while self._next < len(self._order):
            point = self._point(int(self._order[self._next]))
            self._next += 1
            if key_of(point) not in had:
                return point
        return {}

    def _point(self, number: int) -> dict[str, Any]:
        """Return the parameters of a point by its number, as digits of a mixed-radix number."""
        branch = int(np.searchsorted(self._starts, number, side="right")) - 1
        rest, point = number - self._starts[branch], dict[str, Any]()
        for name, values in self._branches[branch].items():
            rest, digit = divmod(rest, len(values))
            point[name] = values[digit]
        return point
