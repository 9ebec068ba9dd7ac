"""Between a study's dimensions and recipes."""

from __future__ import annotations

import math
from typing import Any

import optuna

from cabs_search.recipe import Cabs, Recipe, make_method, make_recipe
from cabs_search.spec import Spec

ORDER_MARK = ">"


def suggest(spec: Spec, trial: optuna.Trial) -> Recipe:
    """The recipe that a trial's sampler proposes; fields with one value are no dimension."""
    method = _choose(trial, "method", spec.space.method)
    nm, order = spec.space.nm[0], spec.orders[0]
    if method == "cabs":
        nms = {f"{n}:{m}": (n, m) for n, m in spec.space.nm}
        orders = {ORDER_MARK.join(o): o for o in spec.orders}
        nm = nms[_choose(trial, "nm", tuple(nms))]
        order = orders[_choose(trial, "order", tuple(orders))]
    chosen = make_method(
        method, tuple(spec.experts), nm=nm, order=order, overlap=spec.space.overlap, tail=spec.space.tail
    )
    range_ = spec.space.lambda_
    names = ["lambda"] if range_.shared else [f"lambda.{e}" for e in spec.experts]
    values = [trial.suggest_float(name, range_.low, range_.high, step=range_.step) for name in names]
    if range_.shared:
        values *= len(spec.experts)
    return make_recipe(chosen, dict(zip(spec.experts, values, strict=True)))


def params_of(spec: Spec, recipe: Recipe) -> dict[str, Any] | None:
    """The parameters with which ``suggest`` gives this recipe; None where it is not in the space."""
    method, range_, params = recipe.method, spec.space.lambda_, dict[str, Any]()
    if method.name not in spec.space.method or (range_.shared and not recipe.is_shared):
        return None
    if len(spec.space.method) > 1:
        params["method"] = method.name
    if isinstance(method, Cabs):
        settings = (method.nm in spec.space.nm, method.order in spec.orders)
        if not all(settings) or (method.overlap, method.tail) != (spec.space.overlap, spec.space.tail):
            return None
        if len(spec.space.nm) > 1:
            params["nm"] = f"{method.nm[0]}:{method.nm[1]}"
        if len(spec.orders) > 1:
            params["order"] = ORDER_MARK.join(method.order)
    lambdas = {"lambda": recipe.lambdas[0][1]} if range_.shared else {f"lambda.{k}": v for k, v in recipe.lambdas}
    for value in lambdas.values():
        steps = (value - range_.low) / range_.step
        if not (range_.low - 1e-9 <= value <= range_.high + 1e-9) or not math.isclose(
            steps, round(steps), abs_tol=1e-6
        ):
            return None
    return params | lambdas


def choices(spec: Spec) -> dict[str, tuple[str, ...]]:
    """The values of the dimensions that are no ranges, as the study knows them."""
    return {
        "method": spec.space.method,
        "nm": tuple(f"{n}:{m}" for n, m in spec.space.nm),
        "order": tuple(ORDER_MARK.join(order) for order in spec.orders),
    }


def size(spec: Spec) -> int:
    """How many distinct candidates the space holds."""
    range_ = spec.space.lambda_
    lambdas: int = range_.steps ** (1 if range_.shared else len(spec.experts))
    settings = {"cabs": len(spec.space.nm) * len(spec.orders), "task-arithmetic": 1}
    return lambdas * sum(settings[method] for method in spec.space.method)


def _choose(trial: optuna.Trial, name: str, values: tuple[str, ...]) -> str:
    return str(trial.suggest_categorical(name, values)) if len(values) > 1 else values[0]
