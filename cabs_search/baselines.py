"""The candidates that every study is held against: base, single experts, and one λ shared by all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cabs_search.outcomes import Scored
from cabs_search.recipe import Recipe, TaskArithmetic, make_method, make_recipe
from cabs_search.spec import Spec


def baselines(spec: Spec) -> list[Recipe]:
    """The shared-λ candidates that a spec asks for, in its order."""
    found = []
    for name, baseline in spec.baselines.items():
        method = make_method(
            name,
            tuple(spec.experts),
            nm=baseline.nm or spec.space.nm[0],
            order=baseline.order or spec.orders[0],
            overlap=spec.space.overlap,
            tail=spec.space.tail,
        )
        found += [make_recipe(method, dict.fromkeys(spec.experts, value)) for value in baseline.lambda_]
    return found


def singles(spec: Spec) -> dict[str, Recipe]:
    """The base and each expert as recipes, by the label of their row: what every merge is held against."""
    zero = dict.fromkeys(spec.experts, 0.0)
    rows: Mapping[str, dict[str, float]] = {"base": zero} | {f"expert {e}": zero | {e: 1.0} for e in spec.experts}
    return {label: make_recipe(TaskArithmetic(), lambdas) for label, lambdas in rows.items()}


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Best first; equal scores in an order that does not depend on which ended first."""
    return sorted(scored, key=lambda s: (-s.score, s.recipe.key))


def best_shared(spec: Spec, scored: Mapping[str, Scored]) -> dict[str, Scored]:
    """By method of the baselines, the best candidate with one λ for all experts."""
    found: dict[str, Scored] = {}
    for method in spec.baselines:
        mine = [s for s in scored.values() if s.recipe.is_shared and s.recipe.method.name == method]
        if mine:
            found[method] = ranked(mine)[0]
    return found
