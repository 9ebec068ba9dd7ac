"""The methods of a space, and the candidates that every study is held against: base, single
experts, one shared λ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cabs_search.merging.masks.rules import MASKS, settings, value_for
from cabs_search.merging.recipe import (
    Method,
    Recipe,
    collapsed,
    make_method,
    make_recipe,
    split_name,
)
from cabs_search.record.outcomes import Scored
from cabs_search.spec.study import Spec


def dimensions(spec: Spec, method: str) -> dict[str, tuple[Any, ...]]:
    """The values that a space holds of each setting of a method that it may vary, by the setting's
    name.
    """
    values = {"nm": spec.space.nm, "density": spec.space.densities, "order": spec.orders}
    return {name: values[name] for name in settings(MASKS[split_name(method)[1]]) if name in values}


def method_of(spec: Spec, name: str, **chosen: Any) -> Method:
    """A method with its settings chosen, all others as the space has them, or has them first."""
    first = {setting: values[0] for setting, values in dimensions(spec, name).items()}
    return make_method(
        name,
        tuple(spec.experts),
        **{"nm": spec.space.nm[0]} | first | chosen,
        overlap=spec.space.overlap,
        overlap_merge=spec.space.overlap_merge,
        tail=spec.space.tail,
        seed=spec.seed,
    )


def methods_of(spec: Spec) -> Iterator[Method]:
    """Every method with every setting that the space holds."""
    for name in spec.space.method:
        found = dimensions(spec, name)
        if not spec.space.density_shared:
            for amount in {"nm", "density"} & found.keys():
                each = itertools.product(found[amount], repeat=len(spec.experts))
                found[amount] = tuple(
                    collapsed(dict(zip(spec.experts, values, strict=True))) for values in each
                )
        for values in itertools.product(*found.values()):
            yield method_of(spec, name, **dict(zip(found, values, strict=True)))


def holds(spec: Spec, method: Method) -> bool:
    """Whether a space holds a method with its settings."""
    return any(
        found is not None
        for found in (settings_in(spec, name, method) for name in spec.space.method)
    )


def settings_in(spec: Spec, name: str, method: Method) -> dict[str, Any] | None:
    """The settings with which a space's method is the one given; None where it never is."""
    found = dimensions(spec, name)
    chosen = {setting: getattr(method.mask, setting, None) for setting in found}
    if None in chosen.values() or method_of(spec, name, **chosen) != method:
        return None
    for setting, values in found.items():
        shared = setting == "order" or spec.space.density_shared
        each = (
            {chosen[setting]}
            if shared
            else {value_for(chosen[setting], expert) for expert in spec.experts}
        )
        if not each <= set(values):
            return None
    return chosen


def baselines(spec: Spec) -> list[Recipe]:
    """The shared-λ candidates that a spec asks for, in its order."""
    found = []
    for name, baseline in spec.baselines.items():
        given = {"nm": baseline.nm, "density": baseline.density, "order": baseline.order}
        method = method_of(spec, name, **{k: v for k, v in given.items() if v is not None})
        found += [
            make_recipe(method, dict.fromkeys(spec.experts, value)) for value in baseline.lambda_
        ]
    return found


def candidate_of(spec: Spec) -> Callable[[Recipe], bool]:
    """Tells a study's candidates from others: those of its space, and its baselines, which may lie
    outside.
    """
    asked_for = {recipe.key for recipe in baselines(spec)}
    return lambda recipe: recipe.key in asked_for or holds(spec, recipe.method)


def reference_recipes(spec: Spec) -> dict[str, Recipe]:
    """The base and each expert as recipes, by the label of their row: what every merge is held
    against.
    """
    zero = dict.fromkeys(spec.experts, 0.0)
    rows: Mapping[str, dict[str, float]] = {"base": zero} | {
        f"expert {e}": zero | {e: 1.0} for e in spec.experts
    }
    whole = make_method("task-arithmetic", tuple(spec.experts))
    return {label: make_recipe(whole, lambdas) for label, lambdas in rows.items()}


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Best first; equal scores in an order that does not depend on which ended first."""
    return sorted(scored, key=lambda s: (-s.score, s.recipe.key))


def best_shared(spec: Spec, scored: Mapping[str, Scored]) -> dict[str, Scored]:
    """By method of the baselines, the best candidate with one λ for all experts."""
    found: dict[str, Scored] = {}
    for name in spec.baselines:
        known = method_of(spec, name).name
        mine = [s for s in scored.values() if s.recipe.is_shared and s.recipe.method.name == known]
        if mine:
            found[name] = ranked(mine)[0]
    return found
