"""CMA-ES as CABS+ runs it over λ (arXiv 2503.01874): near λ = 1, in small steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from cmaes import CMA

START = 1.0
"""λ about which the first generation is drawn."""
SIGMA = 0.05
"""Standard deviation of the first generation, of λ itself."""
POPULATION = 6
MOST_GENERATIONS = 50
MOST_FLAT = 6
"""Flat generations in a row after which the search ends."""
GENERATION = "awa:generation"
"""Attribute of a trial: the generation that it was drawn in."""
ENDED = "awa:ended"
"""Attribute of a trial: its place among those of this run that have ended."""


def awa(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Make the sampler of CABS+."""
    return AwaSampler(seed)


class AwaSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """CMA-ES over linear ranges; parameters of other kinds are random.

    Optuna's CMA-ES scales ranges to [0, 1] and begins after a random trial, which this recipe does
    not. The distribution is not kept: it follows from the finished trials and their generations.
    """

    def __init__(self, seed: int) -> None:
        self._ended = 0
        self._rng = np.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._shared = optuna.search_space.IntersectionSearchSpace()

    def infer_relative_search_space(
        self,
        study: Study,
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that all finished trials have."""
        space: dict[str, BaseDistribution] = self._shared.calculate(study)
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw λ from the present generation; repeat the best trial once the search has ended.

        More proposals than a generation holds, while its results are awaited, are drawn from it
        too; its first results count.
        """
        self._raise_error_if_multi_objective(study)
        ranges = {name: d for name, d in search_space.items() if _is_range(d)}
        others = {
            name: self._random.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if name not in ranges
        }
        if not ranges:
            return others
        cma = _first_generation(ranges)
        if _has_ended(cma, study, ranges):
            # nothing new is proposed any more, by which a search knows that it is over
            best = study.best_trial.params
            return {name: best[name] for name in search_space}
        study._storage.set_trial_system_attr(trial._trial_id, GENERATION, cma.generation)
        return others | self._draw(cma, ranges)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw λ from the first generation, in which parameters are independent."""
        self._raise_error_if_multi_objective(study)
        if not _is_range(param_distribution):
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        if GENERATION not in trial.system_attrs:
            study._storage.set_trial_system_attr(trial._trial_id, GENERATION, 0)
        ranges = {param_name: param_distribution}
        return self._draw(_first_generation(ranges), ranges)[param_name]

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,  # noqa: ARG002
        values: Sequence[float] | None,  # noqa: ARG002
    ) -> None:
        """Note the order in which trials end, which a clock that is set back would not tell."""
        self._ended += 1
        study._storage.set_trial_system_attr(trial._trial_id, ENDED, self._ended)

    def _draw(self, cma: CMA, ranges: dict[str, FloatDistribution]) -> dict[str, float]:
        cma.reseed_rng(int(self._rng.integers(2**32)))
        drawn = zip(ranges.items(), cma.ask().tolist(), strict=True)
        return {name: _in_steps(value, range_) for (name, range_), value in drawn}


def _is_range(distribution: BaseDistribution) -> bool:
    is_linear = isinstance(distribution, FloatDistribution) and not distribution.log
    return is_linear and not distribution.single()


def _in_steps(value: float, range_: FloatDistribution) -> float:
    if range_.step:
        value = range_.low + round((value - range_.low) / range_.step) * range_.step
    return float(min(max(value, range_.low), range_.high))


def _first_generation(ranges: dict[str, FloatDistribution]) -> CMA:
    import cmaes

    bounds = np.array([(r.low, r.high) for r in ranges.values()])
    return cmaes.CMA(
        mean=np.clip(START, *bounds.T), sigma=SIGMA, bounds=bounds, population_size=POPULATION
    )


def _has_ended(cma: CMA, study: Study, ranges: dict[str, FloatDistribution]) -> bool:
    """Tell ``cma`` the generations that are complete; return whether there are no more."""
    generations: dict[int | None, list[tuple[np.ndarray, float]]] = defaultdict(list)
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    # those of earlier runs stand first, in the order of their ends
    for trial in sorted(finished, key=lambda t: (t.system_attrs.get(ENDED, 0), t.number)):
        solution = np.array([trial.params[name] for name in ranges])
        generations[trial.system_attrs.get(GENERATION)].append((solution, sign * trial.value))
    flat = 0
    while cma.generation < MOST_GENERATIONS and flat < MOST_FLAT:
        solutions = generations[cma.generation][:POPULATION]
        if len(solutions) < POPULATION:
            return False
        best, *_, second_worst, _ = sorted(value for _, value in solutions)
        # pycma's rule: all are equal, but for the worst quarter
        flat = flat + 1 if best == second_worst else 0
        cma.tell(solutions)
    return True
