"""Between a study's dimensions and recipes.

Parameters: ``method``; ``nm``, ``density``, ``order`` where a method has them, with ``.EXPERT``
where each expert has a value of its own; ``lambda``, with ``.EXPERT``, ``.GROUP`` or both. A method
with a range of λ of its own has parameters of its own for it, with ``METHOD:`` before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import optuna

from cabs_search.merging.masks.rules import value_for
from cabs_search.merging.recipe import Recipe, collapsed, make_recipe
from cabs_search.search.candidates import dimensions, method_of, settings_in
from cabs_search.spec.study import Spec

ORDER_MARK = ">"


def suggest(spec: Spec, trial: optuna.Trial) -> Recipe:
    """The recipe that a trial's sampler proposes; fields with one value are no dimension."""
    name = _choose(trial, "method", {m: m for m in spec.space.method})
    chosen: dict[str, Any] = {}
    for setting, values in dimensions(spec, name).items():
        by_text = {_text(setting, v): v for v in values}
        if _is_shared(spec, setting):
            chosen[setting] = _choose(trial, setting, by_text)
        else:
            chosen[setting] = collapsed(
                {e: _choose(trial, f"{setting}.{e}", by_text) for e in spec.experts}
            )
    range_, found = spec.space.range_of(name), dict[str, float]()
    for param, keys in _lambdas(spec, name):
        value = trial.suggest_float(param, range_.low, range_.high, step=range_.step)
        found |= dict.fromkeys(keys, value)
    ordered = {key: found[key] for key in lambda_keys(spec)}
    return make_recipe(method_of(spec, name, **chosen), ordered, spec.space.groups)


def lambda_keys(spec: Spec) -> list[str]:
    """What has a λ: experts, or expert.group."""
    groups = [name for name, _ in spec.space.groups]
    return [f"{e}.{g}" for e in spec.experts for g in groups] if groups else list(spec.experts)


def _lambdas(spec: Spec, method: str) -> Iterator[tuple[str, list[str]]]:
    """Parameters of λ with the keys that each one sets."""
    start = f"{method}:lambda" if method in spec.space.lambda_.methods else "lambda"
    if not spec.space.lambda_.shared:
        yield from ((f"{start}.{key}", [key]) for key in lambda_keys(spec))
    elif spec.space.groups:
        yield from (
            (f"{start}.{g}", [f"{e}.{g}" for e in spec.experts]) for g, _ in spec.space.groups
        )
    else:
        yield start, list(spec.experts)


def params_of(spec: Spec, recipe: Recipe) -> dict[str, Any] | None:
    """The parameters with which ``suggest`` gives this recipe; None where it is not in the
    space.
    """
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
        if len(values) > 1 and _is_shared(spec, setting):
            params[setting] = _text(setting, chosen[setting])
        elif len(values) > 1:
            params |= {
                f"{setting}.{e}": _text(setting, value_for(chosen[setting], e))
                for e in spec.experts
            }
    return params


def _lambda_params(spec: Spec, method: str, recipe: Recipe) -> dict[str, float] | None:
    if recipe.groups not in ((), spec.space.groups):
        return None
    given = (
        recipe.lambda_
        if recipe.groups
        else {k: recipe.lambda_[k.split(".")[0]] for k in lambda_keys(spec)}
    )
    params = {}
    for param, keys in _lambdas(spec, method):
        values = {given[key] for key in keys}
        if len(values) > 1 or next(iter(values)) not in spec.space.range_of(method):
            return None
        params[param] = next(iter(values))
    return params


def size(spec: Spec) -> int:
    """How many distinct candidates the space holds."""
    total = 0
    for name in spec.space.method:
        lambdas = spec.space.range_of(name).steps ** len(list(_lambdas(spec, name)))
        total += lambdas * math.prod(
            len(values) ** (1 if _is_shared(spec, setting) else len(spec.experts))
            for setting, values in dimensions(spec, name).items()
        )
    return total


def _is_shared(spec: Spec, setting: str) -> bool:
    return setting == "order" or spec.space.density_shared


def _text(setting: str, value: Any) -> str:
    """A value as Optuna keeps it."""
    if setting == "nm":
        return f"{value[0]}:{value[1]}"
    return ORDER_MARK.join(value) if setting == "order" else f"{value:.9g}"


def _choose(trial: optuna.Trial, name: str, values: dict[str, Any]) -> Any:
    texts = tuple(values)
    return values[str(trial.suggest_categorical(name, texts)) if len(texts) > 1 else texts[0]]
