"""Methods of a space, and the candidates that every study is held against.

These are the base, single experts, and baselines with one λ for all experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cabs_search.merging.masks.rules import SETTINGS, settings
from cabs_search.merging.masks.settings import collapsed, value_for
from cabs_search.merging.recipe import Method, Recipe, make_method, make_recipe, rule_of
from cabs_search.record.outcomes import Scored
from cabs_search.spec.study import Spec


def dimensions(spec: Spec, method: str) -> dict[str, tuple[Any, ...]]:
    """Return the values that a space holds of each setting of a method that a search varies, by
    name.
    """
    space = spec.space
    values = {"nm": space.nm, "density": space.densities, "order": spec.orders, **space.more}
    dims: dict[str, tuple[Any, ...]] = {}
    for name, setting in settings(rule_of(method)).items():
        if setting.is_searched:
            default = (setting.default(tuple(spec.experts), {}),) if name not in values else ()
            dims[name] = values.get(name, default)
    return dims


def method_of(spec: Spec, name: str, **chosen: Any) -> Method:
    """Make a method with its settings chosen, all others as the space has them, or has them
    first.
    """
    space = spec.space
    fixed = {setting: values[0] for setting, values in space.more.items()}
    first = {setting: values[0] for setting, values in dimensions(spec, name).items()}
    fixed |= {"nm": space.nm[0], "overlap": space.overlap, "tail": space.tail, "seed": spec.seed}
    return make_method(
        name, tuple(spec.experts), overlap_merge=space.overlap_merge, **fixed | first | chosen
    )


def methods_of(spec: Spec) -> Iterator[Method]:
    """Yield every method with every setting that the space holds."""
    for name in spec.space.method:
        dims = dimensions(spec, name)
        for setting, values in dims.items():
            if not is_shared(spec, setting):
                products = itertools.product(values, repeat=len(spec.experts))
                dims[setting] = tuple(
                    collapsed(dict(zip(spec.experts, product, strict=True))) for product in products
                )
        for values in itertools.product(*dims.values()):
            yield method_of(spec, name, **dict(zip(dims, values, strict=True)))


def is_shared(spec: Spec, setting: str) -> bool:
    """Tell whether all experts have one value of a setting."""
    return spec.space.density_shared or not SETTINGS[setting].is_per_expert


def holds(spec: Spec, method: Method) -> bool:
    """Tell whether a space holds a method with its settings."""
    return any(settings_in(spec, name, method) is not None for name in spec.space.method)


def settings_in(spec: Spec, name: str, method: Method) -> dict[str, Any] | None:
    """Return the settings with which a space's method is the one given; None if it never is."""
    dims = dimensions(spec, name)
    chosen = {setting: getattr(method.mask, setting, None) for setting in dims}
    if None in chosen.values() or method_of(spec, name, **chosen) != method:
        return None
    for setting, values in dims.items():
        if is_shared(spec, setting):
            used = {chosen[setting]}
        else:
            used = {value_for(chosen[setting], expert) for expert in spec.experts}
        if not used <= set(values):
            return None
    return chosen


def baselines(spec: Spec) -> list[Recipe]:
    """Make the candidates with one λ for all experts that a spec asks for, in its order."""
    recipes = []
    for name, baseline in spec.baselines.items():
        given = {"nm": baseline.nm, "density": baseline.density, "order": baseline.order}
        method = method_of(spec, name, **{k: v for k, v in given.items() if v is not None})
        for value in baseline.lambda_:
            lambdas = dict.fromkeys(spec.experts, value)
            recipes += [make_recipe(method, lambdas)]
    return recipes


def candidate_of(spec: Spec) -> Callable[[Recipe], bool]:
    """Make a test for a study's candidates: those of its space, and its baselines, which may
    lie outside.
    """
    asked_for = {recipe.key for recipe in baselines(spec)}
    return lambda recipe: recipe.key in asked_for or holds(spec, recipe.method)


def reference_recipes(experts: Iterable[str]) -> dict[str, Recipe]:
    """Make the base and each expert as recipes, by the label of their row on the leaderboard."""
    names = tuple(experts)
    zero = dict.fromkeys(names, 0.0)
    whole = make_method("task-arithmetic", names)
    recipes = {"base": make_recipe(whole, zero)}
    return recipes | {f"expert {e}": make_recipe(whole, zero | {e: 1.0}) for e in names}


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Sort best first; equal scores in an order that does not depend on which ended first."""
    return sorted(scored, key=lambda s: (-s.score, s.recipe.key))


def best_shared(spec: Spec, scored: Mapping[str, Scored]) -> dict[str, Scored]:
    """Find the best candidate with one λ for all experts, by method of the baselines."""
    best: dict[str, Scored] = {}
    for name in spec.baselines:
        method = method_of(spec, name).name
        shared = (s for s in scored.values() if s.recipe.is_shared)
        if candidates := ranked(s for s in shared if s.recipe.method.name == method):
            best[name] = candidates[0]
    return best
