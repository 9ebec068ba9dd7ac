"""Sampler on a response surface over items: learns from every item scored, of stopped ones too.

See docs/surface.md. A trial carries its items' results in memory, as the attribute ``ANSWERS``;
one that has none, as in a study that is not ours, counts by its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm

from cabs_search.search.coordinates import (
    Coordinates,
    Floats,
    Key,
    Params,
    Space,
    key_of,
    share_of,
    value_at,
)
from cabs_search.search.surface import Answers, Predicted, ScoreModel

ANSWERS = "answers"
"""A trial's attribute in memory: its ``Answers`` by task."""
DRAWN, KEPT, ROUNDS = 300, 10, 3
"""Points drawn for each branch of the space; points that are looked around, and how often."""
STEP = 0.1
"""Typical change of a parameter, as a share of its range, when a point is looked around."""
VALUE = "value"
"""The one task of trials without answers."""


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
    ) -> None:
        """Prepare; the first ``startup_trials`` are random; ``weights`` as of ``ScoreModel``."""
        self.weights = weights
        self._rng = np.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._startup_trials = startup_trials
        self._model: ScoreModel | None = None
        self._fitted: tuple[Any, PlacedModel] | None = None
        """Data that the model was fitted to, and the fitted model."""
        self.fruitless = 0
        """Proposals in a row for which no point was left that no trial has had."""
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
        trials = _learned(study, trial)
        if len(trials) < self._startup_trials:
            return {}
        return _varied(trials)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Propose the parameters of one branch of the space."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        trials = _learned(study, trial)
        known = {other.number for other in trials} | {trial.number}
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        pending = [other for other in running if other.number not in known and other.params]
        model = self._fit(study, trials, search_space)
        best = float(model.predict_means([other.params for other in trials]).max())
        model = model.expecting([other.params for other in pending])

        def gain(points: Sequence[Params]) -> Floats:
            predicted = model.predict(points)
            return _expected_improvement(predicted.mean - best, predicted.deviation)

        tried = {key_of(other.params) for other in (*trials, *pending)}
        found = self._maximize(gain, [*trials, *pending], search_space, tried)
        self.fruitless = self.fruitless + 1 if found is None else 0
        if found is None:
            return {}
        self.predicted[trial.number] = model.recommended(found)
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
        trials = sorted(_learned(study), key=lambda other: key_of(other.params))
        space = _varied(trials)
        scored = [other for other in trials if other.state == TrialState.COMPLETE]
        if not trials or (only_scored and not scored):
            return None
        if not space:  # there is one point
            return _seen(trials[0])
        afresh = SurfaceSampler(seed=0, weights=self.weights)
        model = afresh._fit(study, trials, space)

        def mean(points: Sequence[Params]) -> Floats:
            return model.predict_means(points)

        if only_scored:
            values = mean([other.params for other in scored])
            return model.recommended(scored[int(values.argmax())].params)
        found = afresh._maximize(mean, trials, space, excluded=())
        return None if found is None else model.recommended(found)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw at random what no trial has had yet."""
        self._raise_error_if_multi_objective(study)
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _fit(self, study: Study, trials: Sequence[FrozenTrial], space: Space) -> PlacedModel:
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        answers = [_answers(trial, sign) for trial in trials]
        known = [(trial.number, id(trial.user_attrs.get(ANSWERS))) for trial in trials]
        fitted_to = known, space, self.weights
        if self._fitted is not None and self._fitted[0] == fitted_to:
            return self._fitted[1]
        tasks = list(answers[0])
        weights = None if tasks == [VALUE] else self.weights
        if self._model is None or (self._model.tasks, self._model.weights) != (tasks, weights):
            self._model = ScoreModel(tasks=tasks, weights=weights)
        placed = PlacedModel(Coordinates(space), self._model)
        points = [trial.params for trial in trials]
        self._model.fit(*placed.coordinates.of(points), answers, [key_of(p) for p in points])
        self._fitted = fitted_to, placed
        return placed

    def _maximize(
        self,
        criterion: Callable[[Sequence[Params]], Floats],
        trials: Sequence[FrozenTrial],
        space: Space,
        excluded: Collection[Key],
    ) -> Params | None:
        """Find the point with the largest criterion: draw many, then look around the best.

        Args:
            criterion: values of points.
            trials: what was tried so far.
            space: the parameters.
            excluded: keys of points that must not be found.

        """
        pool = [params for branch in _branches(trials, space) for params in self._draw(branch)]
        pool += [trial.params for trial in trials if key_of(trial.params) not in excluded]
        best: Params | None = None
        for _ in range(ROUNDS + 1):
            fresh = {key_of(params): params for params in pool}
            pool = [params for key, params in fresh.items() if key not in excluded]
            if not pool:
                break
            order = np.argsort(-criterion(pool))
            best = pool[order[0]]
            kept = [pool[i] for i in order[:KEPT]]
            pool = kept + [near for params in kept for near in self._near(params, space)]
        return best

    def _draw(self, branch: Space) -> list[Params]:
        """Draw points of a branch."""
        shares = self._rng.random((DRAWN, len(branch)))
        return [
            {
                name: value_at(share, kind)
                for share, (name, kind) in zip(row, branch.items(), strict=True)
            }
            for row in shares.tolist()
        ]

    def _near(self, params: Params, space: Space) -> list[Params]:
        """Draw points near one: each has some parameters changed."""
        found = []
        for scale in (STEP, STEP, STEP, STEP / 3, STEP / 3, STEP / 3):
            changed = dict(params)
            for name, value in params.items():
                kind = space[name]
                if isinstance(kind, CategoricalDistribution):
                    continue
                if self._rng.random() < max(0.5, 1 / len(params)):
                    share = share_of(value, kind) + scale * self._rng.normal()
                    changed[name] = value_at(min(max(share, 0.0), 1.0), kind)
            found.append(changed)
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
    tasks = _answers(trial, 1.0).values()
    means = [np.nanmean(own.scores) for own in tasks if np.isfinite(own.scores).any()]
    mean = float(np.mean(means)) if means else float(trial.value)
    return Recommended(trial.params, mean, 0.0)


@dataclass(frozen=True)
class PlacedModel:
    """A score model of points that are given by their parameters."""

    coordinates: Coordinates
    model: ScoreModel

    def expecting(self, points: Sequence[Params]) -> PlacedModel:
        """See ``ScoreModel.expecting``."""
        return replace(self, model=self.model.expecting(*self.coordinates.of(points)))

    def predict(self, points: Sequence[Params]) -> Predicted:
        """See ``ScoreModel.predict``."""
        return self.model.predict(*self.coordinates.of(points))

    def predict_means(self, points: Sequence[Params]) -> Floats:
        """See ``ScoreModel.predict_means``."""
        return self.model.predict_means(*self.coordinates.of(points))

    def recommended(self, point: Params) -> Recommended:
        """Return a point with its prediction."""
        predicted = self.predict([point])
        deviation = math.hypot(float(predicted.deviation[0]), predicted.noise)
        return Recommended(point, float(predicted.mean[0]), deviation)


def _learned(study: Study, trial: FrozenTrial | None = None) -> list[FrozenTrial]:
    """Return the trials, other than this one, of which answers or a value are known."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    trials = study.get_trials(deepcopy=False, states=states)
    other = [t for t in trials if trial is None or t.number != trial.number]
    answered = [t for t in other if t.user_attrs.get(ANSWERS)]
    if answered:
        # of trials of the same point, the last one knows all that the others know
        latest = {key_of(t.params): t for t in answered if t.params}
        return list(latest.values())
    return [
        t for t in other if t.state == TrialState.COMPLETE and t.params and math.isfinite(t.value)
    ]


def _varied(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the parameters of trials that have more than one value."""
    space = {name: kind for other in trials for name, kind in other.distributions.items()}
    return {name: kind for name, kind in sorted(space.items()) if not kind.single()}


def _answers(trial: FrozenTrial, sign: float) -> Mapping[str, Answers]:
    answers: Mapping[str, Answers] | None = trial.user_attrs.get(ANSWERS)
    if answers is not None:
        return answers
    nothing = np.empty(0)
    return {VALUE: Answers(scores=nothing, responses=nothing, metric=sign * trial.value)}


def _branches(trials: Iterable[FrozenTrial], space: Space) -> list[dict[str, BaseDistribution]]:
    """Return the sets of parameters that trials had together.

    Some parameters depend on a choice, as the settings of a method: a choice that was only seen
    with other parameters is not offered.
    """
    seen: dict[tuple[str, ...], dict[str, set[Any]]] = {}
    for trial in trials:
        names = tuple(sorted(trial.params.keys() & space.keys()))
        values = seen.setdefault(names, {})
        for name in names:
            if isinstance(space[name], CategoricalDistribution):
                values.setdefault(name, set()).add(trial.params[name])
    branches = []
    for names, values in seen.items():
        branch = {name: space[name] for name in names}
        for name, own in values.items():
            elsewhere = set().union(
                *(v.get(name, set()) for other, v in seen.items() if other != names)
            )
            kind = space[name]
            assert isinstance(kind, CategoricalDistribution)
            branch[name] = CategoricalDistribution(
                [value for value in kind.choices if value in own or value not in elsewhere]
            )
        branches.append(branch)
    return branches


def _expected_improvement(gain: Floats, deviation: Floats) -> Floats:
    ratio = gain / deviation
    expected: Floats = gain * norm.cdf(ratio) + deviation * norm.pdf(ratio)
    return expected
