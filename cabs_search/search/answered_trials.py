"""Trials as the surface's sampler reads them: their points, answers and branches of the space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cabs_search.search.coordinates import Key, Params, Space, key_of
from cabs_search.search.surface import Answers

ANSWERS = "answers"
"""A trial's attribute in memory: its ``Answers`` by task."""
VALUE = "value"
"""The one task of trials without answers."""


def learned(study: Study, trial: FrozenTrial | None = None) -> dict[Key, FrozenTrial]:
    """Return the trials, other than this one, of which answers or a value are known, by point."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    trials = study.get_trials(deepcopy=False, states=states)
    other = [t for t in trials if trial is None or t.number != trial.number]
    answered = [t for t in other if t.user_attrs.get(ANSWERS)]
    if answered:
        # of trials of the same point, the last one knows all that the others know
        return {key_of_trial(t): t for t in answered if t.params}
    complete = [t for t in other if t.state == TrialState.COMPLETE and math.isfinite(t.value)]
    return {key_of_trial(t): t for t in complete if t.params}


def key_of_trial(trial: FrozenTrial) -> Key:
    """Return a name of a trial's point, by what more than one value could have been taken of."""
    kinds = trial.distributions
    return key_of({name: v for name, v in trial.params.items() if not _has_one_value(kinds[name])})


def _has_one_value(kind: BaseDistribution) -> bool:
    """Tell what ``kind.single()`` does, without its decimal arithmetic: it is asked very often."""
    if isinstance(kind, CategoricalDistribution):
        return len(kind.choices) == 1
    return bool(kind.low == kind.high)  # Optuna has taken ``high`` down to a whole step


def fixed(trials: Sequence[FrozenTrial]) -> Params:
    """Return the parameters of trials that can have one value only."""
    return {
        name: trial.params[name]
        for trial in trials
        for name, kind in trial.distributions.items()
        if _has_one_value(kind)
    }


def varied(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the parameters of trials that have more than one value."""
    space = {name: kind for other in trials for name, kind in other.distributions.items()}
    return {name: kind for name, kind in sorted(space.items()) if not kind.single()}


def answers_of(trial: FrozenTrial, sign: float) -> Mapping[str, Answers]:
    """Return a trial's answers by task; its value, times ``sign``, if it has none."""
    answers: Mapping[str, Answers] | None = trial.user_attrs.get(ANSWERS)
    if answers is not None:
        return answers
    nothing = np.empty(0)
    return {VALUE: Answers(scores=nothing, responses=nothing, metric=sign * trial.value)}


class Branch(NamedTuple):
    """Parameters that trials had together."""

    space: Space
    rows: list[int]
    """Numbers of these trials."""


def branches_of(trials: Sequence[FrozenTrial], space: Space) -> list[Branch]:
    """Return the sets of parameters that trials had together.

    Some parameters depend on a choice, as the settings of a method: a choice that was only seen
    with other parameters is not offered.
    """
    together: dict[tuple[str, ...], list[int]] = {}
    for row, trial in enumerate(trials):
        together.setdefault(tuple(trial.params), []).append(row)
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for names, rows in together.items():
        rows_of.setdefault(tuple(sorted(space.keys() & set(names))), []).extend(rows)
    choices = [n for n, kind in space.items() if isinstance(kind, CategoricalDistribution)]
    seen = {
        (names, name): {trials[row].params[name] for row in rows}
        for names, rows in rows_of.items()
        for name in choices
        if name in names
    }
    branches = []
    for names, rows in rows_of.items():
        branch = {name: space[name] for name in names}
        for name in choices:
            if name in names:
                elsewhere = set[Any]().union(
                    *(v for (other, n), v in seen.items() if other != names and n == name)
                )
                own = seen[names, name]
                kept = [v for v in space[name].choices if v in own or v not in elsewhere]
                branch[name] = CategoricalDistribution(kept)
        branches.append(Branch(branch, rows))
    return branches
