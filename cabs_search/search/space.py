"""Optuna parameters of a space, and the recipes that they name.

Parameters: ``method``; the searched settings of a method (``nm``, ``density``, ``order``, …),
with ``.EXPERT`` where each expert has a value of its own; ``lambda``, with ``.EXPERT``,
``.GROUP`` (or ``.ANCHOR``, its number) or both. A method with a range of λ of its own has
parameters of its own for it, with ``METHOD:`` before them. Those of stacks: ``stacks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import optuna

from cabs_search.merging.masks.rules import SETTINGS
from cabs_search.merging.masks.settings import collapsed, value_for
from cabs_search.merging.method import combine_rule_of
from cabs_search.merging.recipe import LambdaKey, Recipe, make_recipe
from cabs_search.search.candidates import Candidates
from cabs_search.search.stacks import count_stacks, stack_params, stack_values, suggest_stack

ORDER_MARK = ">"


def suggest(candidates: Candidates, trial: optuna.Trial) -> Recipe:
    """Make the recipe that a trial's sampler proposes; fields with one value are no dimension."""
    method = _choose(trial, "method", {name: name for name in candidates.space.method})
    chosen: dict[str, Any] = {}
    for setting, values in candidates.dimensions(method).items():
        by_text = {_text(setting, value): value for value in values}
        if candidates.is_shared(setting):
            chosen[setting] = _choose(trial, setting, by_text)
        else:
            chosen[setting] = collapsed(
                {e: _choose(trial, f"{setting}.{e}", by_text) for e in candidates.experts}
            )
    range_, lambdas = candidates.space.range_of(method), dict[LambdaKey, float]()
    for param, keys in _lambda_names(candidates, method):
        value = trial.suggest_float(param, range_.low, range_.high, step=range_.step)
        lambdas |= dict.fromkeys(keys, value)
    ordered = {key: lambdas[key] for key in candidates.lambda_keys}
    space = candidates.space
    stack = suggest_stack(trial, space.stack, candidates.experts) if space.stack else ()
    chosen_method = candidates.method(method, **chosen)
    return make_recipe(chosen_method, ordered, space.groups, space.lambda_.layers or 0, stack)


def _lambda_names(candidates: Candidates, method: str) -> Iterator[tuple[str, Sequence[LambdaKey]]]:
    """Yield the parameters of λ, each with the keys that it sets."""
    space, keys = candidates.space, candidates.lambda_keys
    start = f"{method}:lambda" if method in space.lambda_.methods else "lambda"
    is_shared = space.lambda_.shared or combine_rule_of(method).has_one_lambda
    if not is_shared:
        yield from ((f"{start}.{key}", [key]) for key in keys)
    else:
        for part in space.lambda_parts:
            yield f"{start}.{part}" if part else start, [key for key in keys if key.group == part]


def owners(candidates: Candidates) -> dict[str, str]:
    """Return the expert of each parameter that is a λ of a group of its tensors, or an anchor's."""
    found = {}
    for method in candidates.space.method:
        for param, keys in _lambda_names(candidates, method):
            if len(keys) == 1 and keys[0].group:
                found[param] = keys[0].expert
    return found


def params_of(candidates: Candidates, recipe: Recipe) -> dict[str, Any] | None:
    """Return the parameters with which ``suggest`` gives a recipe; None if the space lacks it."""
    methods, stacks = candidates.space.method, candidates.space.stack
    stack: dict[str, Any] | None = None if recipe.stack else {}
    if stacks is not None:
        stack = stack_params(recipe.stack, stacks, candidates.experts)
    if stack is None:
        return None
    for name in methods:
        chosen = candidates.settings_in(name, recipe.method)
        lambdas = None if chosen is None else _lambda_params(candidates, name, recipe)
        if chosen is not None and lambdas is not None:
            method = {"method": name} if len(methods) > 1 else {}
            return method | _setting_params(candidates, name, chosen) | lambdas | stack
    return None


def _setting_params(candidates: Candidates, method: str, chosen: dict[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for setting, values in candidates.dimensions(method).items():
        if len(values) > 1 and candidates.is_shared(setting):
            params[setting] = _text(setting, chosen[setting])
        elif len(values) > 1:
            for expert in candidates.experts:
                params[f"{setting}.{expert}"] = _text(setting, value_for(chosen[setting], expert))
    return params


def _lambda_params(candidates: Candidates, method: str, recipe: Recipe) -> dict[str, float] | None:
    space = candidates.space
    given, keys = dict(recipe.lambdas), candidates.lambda_keys
    is_of_space = (recipe.groups, recipe.layers) == (space.groups, space.lambda_.layers or 0)
    if not (recipe.groups or recipe.layers):
        given = {key: given[LambdaKey(key.expert)] for key in keys}
    elif not is_of_space or given.keys() != set(keys):
        return None
    params = {}
    for param, owners in _lambda_names(candidates, method):
        values = {given[key] for key in owners}
        if len(values) > 1 or next(iter(values)) not in space.range_of(method):
            return None
        params[param] = next(iter(values))
    return params


def size(candidates: Candidates) -> int:
    """Count the distinct candidates that the space holds."""
    total = 0
    for name in candidates.space.method:
        range_ = candidates.space.range_of(name)
        lambdas = range_.steps ** len(list(_lambda_names(candidates, name)))
        choices = (
            len(values) ** (1 if candidates.is_shared(setting) else len(candidates.experts))
            for setting, values in candidates.dimensions(name).items()
        )
        total += lambdas * math.prod(choices)
    stacks = candidates.space.stack
    return total * count_stacks(stacks, candidates.experts) if stacks else total


def branches(candidates: Candidates) -> list[dict[str, Sequence[Any]]]:
    """Return the values of Optuna's parameters, for each method of the space."""
    found = []
    for method in candidates.space.method:
        is_only = len(candidates.space.method) == 1
        branch: dict[str, Sequence[Any]] = {} if is_only else {"method": [method]}
        for setting, values in candidates.dimensions(method).items():
            is_shared = candidates.is_shared(setting)
            names = [setting] if is_shared else [f"{setting}.{e}" for e in candidates.experts]
            texts = [_text(setting, value) for value in values]
            if len(texts) > 1:
                branch |= dict.fromkeys(names, texts)
        range_ = candidates.space.range_of(method)
        names = [param for param, _ in _lambda_names(candidates, method)]
        branch |= dict.fromkeys(names, range_.values)
        if stacks := candidates.space.stack:
            branch |= stack_values(stacks, candidates.experts)
        found.append(branch)
    return found


def _text(setting: str, value: Any) -> str:
    """Write a value as Optuna keeps it; a number with nine digits."""
    return f"{value:.9g}" if isinstance(value, float) else SETTINGS[setting].text(value)


def _choose(trial: optuna.Trial, name: str, values: dict[str, Any]) -> Any:
    texts = tuple(values)
    return values[str(trial.suggest_categorical(name, texts)) if len(texts) > 1 else texts[0]]
