"""Sampler on a response surface over items: learns from every item scored, of stopped ones too.

See docs/surface.md. A trial carries its items' results in memory, as the attribute ``ANSWERS``;
one that has none, as in a study that is not ours, counts by its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm

from cabs_search.search.answered_trials import (
    ANSWERS,
    VALUE,
    answers_of,
    branches_of,
    fixed,
    key_of_trial,
    learned,
    varied,
)
from cabs_search.search.coordinates import (
    Coordinates,
    Floats,
    Key,
    Params,
    Places,
    Space,
    key_of,
    value_at,
)
from cabs_search.search.surface import NORMAL_90, ScoreModel

DRAWN, KEPT, ROUNDS = 300, 10, 3
"""Points drawn for each branch of the space; points that are looked around, and how often."""
STEPS = np.array([0.1, 0.1, 0.1, 0.03, 0.03, 0.03])
"""Typical change of a number, as a share of its range, in each point drawn around another."""


def surface(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """Make our sampler, random for the first ``startup_trials``."""
    return SurfaceSampler(seed=seed, startup_trials=startup_trials)


class SurfaceSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Proposes what is expected to improve most on the best prediction so far."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        startup_trials: int = 10,
        weights: Mapping[str, float] | None = None,
        owners: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare.

        Args:
            seed: of all that is drawn.
            startup_trials: number of first trials that are random.
            weights: as of ``ScoreModel``.
            owners: by parameter, what owns a number, such as the expert of a λ by layer. The random
                trials have one value for all numbers of an owner: many numbers would average out.

        """
        self.weights, self.owners = weights, owners or {}
        self._rng = np.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._startup_trials = startup_trials
        self._starting = -1, dict[str, float]()
        """The last random trial's number, and where in their ranges its owners' numbers are."""
        self._model: ScoreModel | None = None
        self._fitted: tuple[Any, PlacedModel, list[Any]] | None = None
        """Marks of the data that the model was fitted to, the fitted model, and the answers: while
        they are kept, no others have their ids.
        """
        self.fruitless = 0
        """Proposals in a row for which no point was left that no trial has had."""
        self.hopeless = 0
        """Proposals in a row at which what might be gained was less than a score's noise."""
        self.predicted: dict[int, Recommended] = {}
        """Predictions of proposals, by the trial's number."""

    def reseed_rng(self) -> None:
        """Take another seed, as Optuna asks of parallel workers."""
        self._rng = np.random.default_rng()
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters that trials have had, once enough have ended."""
        self._raise_error_if_multi_objective(study)
        trials = list(learned(study, trial).values())
        if len(trials) < self._startup_trials:
            self._starting = trial.number, {}
            return {}
        return varied(trials)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Propose the parameters of one branch of the space."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        by_key = learned(study, trial)
        trials = list(by_key.values())
        known = {other.number for other in trials} | {trial.number}
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        pending = [other for other in running if other.number not in known and other.params]
        placed = self._fit(study, by_key, search_space)
        means = placed.model.predict_means(*placed.tried)
        expecting = placed.expecting([other.params for other in pending])
        improvement = _Improvement(expecting.model, float(means.max()))
        had = [*trials, *pending]
        pools = [
            _Pool(branch.space, self._draw(placed.coordinates, branch.space))
            for branch in branches_of(had, search_space)
        ]
        excluded = by_key.keys() | {key_of_trial(other) for other in pending}
        found = self._maximize(improvement, placed.coordinates, pools, excluded)
        self.fruitless = self.fruitless + 1 if found is None else 0
        if found is None:
            return {}
        likely_best = placed.tried.rows(np.argsort(-means)[:KEPT].tolist())
        is_hopeless = improvement.possible(likely_best) < placed.model.chance
        self.hopeless = self.hopeless + 1 if is_hopeless else 0
        self.predicted[trial.number] = expecting.recommended(found)
        return found

    def recommend(self, study: Study, *, only_scored: bool = False) -> Recommended | None:
        """Return the point with the best prediction.

        It depends on what the study knows alone, not on earlier proposals: a search that was killed
        and resumed recommends the same.

        Args:
            study: the study.
            only_scored: whether to choose among complete trials; else in the whole space.

        Returns:
            None if nothing is known.

        """
        by_key = dict(sorted(learned(study).items()))
        trials = list(by_key.values())
        space = varied(trials)
        scored = [other for other in trials if other.state == TrialState.COMPLETE]
        if not trials or (only_scored and not scored):
            return None
        if not space:  # there is one point
            return _seen(trials[0])
        afresh = SurfaceSampler(seed=0, weights=self.weights, owners=self.owners)
        placed = afresh._fit(study, by_key, space)
        if only_scored:
            places = placed.coordinates.of([other.params for other in scored])
            values = placed.model.predict_means(*places)
            return placed.recommended(scored[int(values.argmax())].params)
        pools = []
        for branch in branches_of(trials, space):
            drawn = afresh._draw(placed.coordinates, branch.space)
            pools.append(_Pool(branch.space, drawn.joined(placed.tried.rows(branch.rows))))
        found = afresh._maximize(
            lambda places: placed.model.predict_means(*places), placed.coordinates, pools, ()
        )
        if found is None:
            return None
        tried = by_key.get(key_of(found))
        return placed.recommended(fixed(trials) | found if tried is None else tried.params)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw at random: in first trials, and what no trial has had yet."""
        self._raise_error_if_multi_objective(study)
        number, shares = self._starting
        if trial.number == number and param_name in self.owners:
            share = shares.setdefault(self.owners[param_name], float(self._rng.random()))
            return value_at(share, param_distribution)
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _draw(self, coordinates: Coordinates, branch: Space) -> Places:
        return coordinates.draw(branch, DRAWN, self._rng, self.owners)

    def _fit(self, study: Study, by_key: Mapping[Key, FrozenTrial], space: Space) -> PlacedModel:
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        trials = by_key.values()
        answers = [answers_of(trial, sign) for trial in trials]
        given = [trial.user_attrs.get(ANSWERS) for trial in trials]
        known = [(trial.number, id(own)) for trial, own in zip(trials, given, strict=True)]
        fitted_to = known, space, self.weights
        if self._fitted is not None and self._fitted[0] == fitted_to:
            return self._fitted[1]
        tasks = list(answers[0])
        weights = None if tasks == [VALUE] else self.weights
        if self._model is None or (self._model.tasks, self._model.weights) != (tasks, weights):
            self._model = ScoreModel(tasks=tasks, weights=weights)
        coordinates, points = Coordinates(space), [trial.params for trial in trials]
        places = coordinates.of(points)
        self._model.fit(*places, answers, list(by_key))
        placed = PlacedModel(coordinates, self._model, places)
        self._fitted = fitted_to, placed, given
        return placed

    def _maximize(
        self,
        criterion: Callable[[Places], Floats],
        coordinates: Coordinates,
        pools: Sequence[_Pool],
        excluded: Collection[Key],
    ) -> Params | None:
        """Find the point with the largest criterion: the best of many, then of some around them.

        Args:
            criterion: values of places.
            coordinates: of the space.
            pools: points of each branch to begin with.
            excluded: keys of points that must not be found.

        """
        for _ in range(ROUNDS):
            found = _best(criterion, coordinates, pools, excluded)
            if not found:  # of a space with few points, which all were had
                return None
            around = []
            for number, pool in enumerate(pools):
                kept = pool.places.rows([point.row for point in found if point.pool == number])
                near = coordinates.near(pool.space, kept, STEPS, self._rng)
                around.append(_Pool(pool.space, kept.joined(near)))
            pools = around
        return _best(criterion, coordinates, pools, excluded)[0].params


class _Pool(NamedTuple):
    """Points of one branch."""

    space: Space
    places: Places


class _Point(NamedTuple):
    """A point of a pool."""

    pool: int
    """The pool's number."""
    row: int
    params: Params


def _best(
    criterion: Callable[[Places], Floats],
    coordinates: Coordinates,
    pools: Sequence[_Pool],
    excluded: Collection[Key],
) -> list[_Point]:
    """Return the different points with the largest criterion, the best first."""
    owners = np.repeat(np.arange(len(pools)), [len(pool.places.x) for pool in pools])
    rows = np.concatenate([np.arange(len(pool.places.x)) for pool in pools])
    values = np.concatenate([criterion(pool.places) for pool in pools if len(pool.places.x)])
    found, seen = list[_Point](), set(excluded)
    for i in np.argsort(-values).tolist():
        number, row = int(owners[i]), int(rows[i])
        pool = pools[number]
        params = coordinates.params(pool.space, pool.places.x[row], pool.places.arms[row])
        if (key := key_of(params)) not in seen:
            seen.add(key)
            found.append(_Point(number, row, params))
        if len(found) == KEPT:
            break
    return found


class Recommended(NamedTuple):
    """A point of a space and its prediction."""

    params: Params
    mean: float
    """Predicted score."""
    deviation: float
    """Standard deviation of the score on all items about it."""


def _seen(trial: FrozenTrial) -> Recommended:
    """Return a trial's point with its mean score so far."""
    tasks = answers_of(trial, 1.0).values()
    means = [np.nanmean(own.scores) for own in tasks if np.isfinite(own.scores).any()]
    mean = float(np.mean(means)) if means else float(trial.value)
    return Recommended(trial.params, mean, 0.0)


@dataclass(frozen=True, eq=False)
class PlacedModel:
    """A score model of points that are given by their parameters."""

    coordinates: Coordinates
    model: ScoreModel
    tried: Places
    """Places of the candidates that the model was fitted to."""

    def expecting(self, points: Sequence[Params]) -> PlacedModel:
        """See ``ScoreModel.expecting``."""
        return replace(self, model=self.model.expecting(*self.coordinates.of(points)))

    def recommended(self, point: Params) -> Recommended:
        """Return a point with its prediction."""
        predicted = self.model.predict(*self.coordinates.of([point]))
        deviation = math.hypot(float(predicted.deviation[0]), predicted.noise)
        return Recommended(point, float(predicted.mean[0]), deviation)


class _Improvement:
    """Expected improvement of places on the best prediction; keeps what was the most possible."""

    def __init__(self, model: ScoreModel, best: float) -> None:
        self._model, self._best = model, best
        self._highest = -math.inf

    def __call__(self, places: Places) -> Floats:
        predicted = self._model.predict(*places)
        highest = float((predicted.mean + NORMAL_90 * predicted.deviation).max())
        self._highest = max(self._highest, highest)
        gain, deviation = predicted.mean - self._best, predicted.deviation
        ratio = gain / deviation
        expected: Floats = gain * norm.cdf(ratio) + deviation * norm.pdf(ratio)
        return expected

    def possible(self, tried: Places) -> float:
        """Return by how much a place may be better than the best one that was tried.

        The upper end of the places' 90 % intervals less the lower end of those of ``tried``.
        Source: Makarova et al., Automatic Termination for Hyperparameter Optimization, AutoML
        (2022).
        """
        predicted = self._model.predict(*tried)
        return self._highest - float((predicted.mean - NORMAL_90 * predicted.deviation).max())
