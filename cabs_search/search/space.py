"""Optuna parameters of a space, and the recipes that they name.

Parameters: ``method``; the searched settings of a method (``nm``, ``density``, ``order``, …),
with ``.EXPERT`` where each expert has a value of its own; ``lambda``, with ``.EXPERT``,
``.GROUP`` or both. A method with a range of λ of its own has parameters of its own for it, with
``METHOD:`` before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import optuna

from cabs_search.merging.masks.rules import SETTINGS
from cabs_search.merging.masks.settings import collapsed, value_for
from cabs_search.merging.recipe import LambdaKey, Recipe, make_recipe
from cabs_search.search.candidates import dimensions, is_shared, method_of, settings_in
from cabs_search.spec.study import Spec

ORDER_MARK = ">"


def suggest(spec: Spec, trial: optuna.Trial) -> Recipe:
    """Make the recipe that a trial's sampler proposes; fields with one value are no dimension."""
    method = _choose(trial, "method", {name: name for name in spec.space.method})
    chosen: dict[str, Any] = {}
    for setting, values in dimensions(spec, method).items():
        by_text = {_text(setting, value): value for value in values}
        if is_shared(spec, setting):
            chosen[setting] = _choose(trial, setting, by_text)
        else:
            chosen[setting] = collapsed(
                {e: _choose(trial, f"{setting}.{e}", by_text) for e in spec.experts}
            )
    range_, lambdas = spec.space.range_of(method), dict[LambdaKey, float]()
    for param, keys in _lambda_names(spec, method):
        value = trial.suggest_float(param, range_.low, range_.high, step=range_.step)
        lambdas |= dict.fromkeys(keys, value)
    ordered = {key: lambdas[key] for key in lambda_keys(spec)}
    return make_recipe(method_of(spec, method, **chosen), ordered, spec.space.groups)


def lambda_keys(spec: Spec) -> list[LambdaKey]:
    """List what has a λ: experts, or each group of each expert."""
    groups = [name for name, _ in spec.space.groups] or [""]
    return [LambdaKey(expert, group) for expert in spec.experts for group in groups]


def _lambda_names(spec: Spec, method: str) -> Iterator[tuple[str, list[LambdaKey]]]:
    """Yield the parameters of λ, each with the keys that it sets."""
    start = f"{method}:lambda" if method in spec.space.lambda_.methods else "lambda"
    keys = lambda_keys(spec)
    if not spec.space.lambda_.shared:
        yield from ((f"{start}.{key}", [key]) for key in keys)
    elif spec.space.groups:
        for group, _ in spec.space.groups:
            yield f"{start}.{group}", [key for key in keys if key.group == group]
    else:
        yield start, keys


def params_of(spec: Spec, recipe: Recipe) -> dict[str, Any] | None:
    """Return the parameters with which ``suggest`` gives a recipe; None if the space has it not."""
    for name in spec.space.method:
        chosen = settings_in(spec, name, recipe.method)
        lambdas = None if chosen is None else _lambda_params(spec, name, recipe)
        if chosen is not None and lambdas is not None:
            method = {"method": name} if len(spec.space.method) > 1 else {}
            return method | _setting_params(spec, name, chosen) | lambdas
    return None


def _setting_params(spec: Spec, method: str, chosen: dict[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for setting, values in dimensions(spec, method).items():
        if len(values) > 1 and is_shared(spec, setting):
            params[setting] = _text(setting, chosen[setting])
        elif len(values) > 1:
            for expert in spec.experts:
                params[f"{setting}.{expert}"] = _text(setting, value_for(chosen[setting], expert))
    return params


def _lambda_params(spec: Spec, method: str, recipe: Recipe) -> dict[str, float] | None:
    if recipe.groups not in ((), spec.space.groups):
        return None
    given = dict(recipe.lambdas)
    if not recipe.groups:
        given = {key: given[LambdaKey(key.expert)] for key in lambda_keys(spec)}
    params = {}
    for param, keys in _lambda_names(spec, method):
        values = {given[key] for key in keys}
        if len(values) > 1 or next(iter(values)) not in spec.space.range_of(method):
            return None
        params[param] = next(iter(values))
    return params


def size(spec: Spec) -> int:
    """Count the distinct candidates that the space holds."""
    total = 0
    for name in spec.space.method:
        lambdas = spec.space.range_of(name).steps ** len(list(_lambda_names(spec, name)))
        choices = (
            len(values) ** (1 if is_shared(spec, setting) else len(spec.experts))
            for setting, values in dimensions(spec, name).items()
        )
        total += lambdas * math.prod(choices)
    return total


def _text(setting: str, value: Any) -> str:
    """Write a value as Optuna keeps it; a number with nine digits."""
    return f"{value:.9g}" if isinstance(value, float) else SETTINGS[setting].text(value)


def _choose(trial: optuna.Trial, name: str, values: dict[str, Any]) -> Any:
    texts = tuple(values)
    return values[str(trial.suggest_categorical(name, texts)) if len(texts) > 1 else texts[0]]
