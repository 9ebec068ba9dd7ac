"""Candidates of a study: recipes of its space, and those that every study is held against.

The latter are the base, single experts, and baselines with one λ for all experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cabs_search.merging.masks.rules import SETTINGS, settings
from cabs_search.merging.masks.settings import collapsed, value_for
from cabs_search.merging.method import Method, make_method, rule_of
from cabs_search.merging.recipe import BASE, LambdaKey, Recipe, make_recipe
from cabs_search.record.entries import Scored
from cabs_search.search.stacks import starts_of
from cabs_search.spec.space import Baseline, Space
from cabs_search.spec.study import Spec
from cabs_search.stats.pareto import crowding_distance, pareto_front


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Recipes that a study may score: those of its space, and its baselines."""

    experts: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]
    """Pruning orders to search."""
    space: Space
    baselines: Mapping[str, Baseline]
    """Shared λ to score first, by method."""
    seed: int
    """Seed of random masks."""

    @classmethod
    def of(cls, spec: Spec) -> Candidates:
        """Return the candidates of a spec."""
        return cls(
            experts=tuple(spec.experts),
            orders=spec.orders,
            space=spec.space,
            baselines=spec.baselines,
            seed=spec.seed,
        )

    def dimensions(self, method: str) -> dict[str, tuple[Any, ...]]:
        """Return the values of each setting of a method that a search varies, by name."""
        space = self.space
        values = {"nm": space.nm, "density": space.densities, "order": self.orders, **space.more}
        dims: dict[str, tuple[Any, ...]] = {}
        for name, setting in settings(rule_of(method)).items():
            if setting.is_searched:
                default = (setting.default(self.experts, {}),) if name not in values else ()
                dims[name] = values.get(name, default)
        return dims

    def method(self, name: str, **chosen: Any) -> Method:
        """Make a method with its settings chosen, all others the first of the space."""
        space = self.space
        fixed = {setting: values[0] for setting, values in space.more.items()}
        first = {setting: values[0] for setting, values in self.dimensions(name).items()}
        fixed |= {"nm": space.nm[0], "overlap": space.overlap, "tail": space.tail}
        return make_method(
            name,
            self.experts,
            overlap_merge=space.overlap_merge,
            **fixed | {"seed": self.seed} | first | chosen,
        )

    def methods(self) -> Iterator[Method]:
        """Yield every method of the space with every setting."""
        for name in self.space.method:
            dims = self.dimensions(name)
            for setting, values in dims.items():
                if not self.is_shared(setting):
                    products = itertools.product(values, repeat=len(self.experts))
                    dims[setting] = tuple(
                        collapsed(dict(zip(self.experts, product, strict=True)))
                        for product in products
                    )
            for values in itertools.product(*dims.values()):
                yield self.method(name, **dict(zip(dims, values, strict=True)))

    def is_shared(self, setting: str) -> bool:
        """Tell whether all experts have one value of a setting."""
        return self.space.density_shared or not SETTINGS[setting].is_per_expert

    def settings_in(self, name: str, method: Method) -> dict[str, Any] | None:
        """Return the settings with which a space's method is the one given; None if it never is."""
        dims = self.dimensions(name)
        chosen = {setting: getattr(method.mask, setting, None) for setting in dims}
        if None in chosen.values() or self.method(name, **chosen) != method:
            return None
        for setting, values in dims.items():
            if self.is_shared(setting):
                used = {chosen[setting]}
            else:
                used = {value_for(chosen[setting], expert) for expert in self.experts}
            if not used <= set(values):
                return None
        return chosen

    def holds(self, method: Method) -> bool:
        """Tell whether the space holds a method with its settings."""
        return any(self.settings_in(name, method) is not None for name in self.space.method)

    @cached_property
    def lambda_keys(self) -> tuple[LambdaKey, ...]:
        """Experts, or groups or anchors of each expert, that have a λ."""
        parts = self.space.lambda_parts
        return tuple(LambdaKey(expert, part) for expert in self.experts for part in parts)

    @cached_property
    def baseline_recipes(self) -> tuple[Recipe, ...]:
        """Recipes of the baselines, in the order of the spec."""
        recipes: list[Recipe] = []
        for name, baseline in self.baselines.items():
            given = {"nm": baseline.nm, "density": baseline.density, "order": baseline.order}
            method = self.method(name, **{k: v for k, v in given.items() if v is not None})
            for value in baseline.lambda_:
                recipes += [make_recipe(method, dict.fromkeys(self.experts, value))]
        return tuple(recipes)

    @cached_property
    def starts(self) -> tuple[Recipe, ...]:
        """Stacks to score first: each model's own layers, with λ in the middle of their range.

        None where no stacks are searched.
        """
        if self.space.stack is None:
            return ()
        name = self.space.method[0]
        values = self.space.range_of(name).grid(3)
        lambdas = dict.fromkeys(self.experts, values[len(values) // 2])
        stacks = starts_of(self.space.stack, self.experts)
        return tuple(make_recipe(self.method(name), lambdas, stack=stack) for stack in stacks)

    def all_methods(self) -> Iterator[Method]:
        """Yield the methods of the space, then those of the baselines."""
        yield from self.methods()
        yield from (recipe.method for recipe in self.baseline_recipes)

    @cached_property
    def _baseline_keys(self) -> frozenset[str]:
        return frozenset(recipe.key for recipe in self.baseline_recipes)

    def is_baseline(self, recipe: Recipe) -> bool:
        """Tell whether a recipe is a baseline."""
        return recipe.key in self._baseline_keys

    def includes(self, recipe: Recipe) -> bool:
        """Tell whether a recipe is of the space or a baseline."""
        is_model = not recipe.ensemble
        return is_model and (self.is_baseline(recipe) or self.holds(recipe.method))

    def best_shared(self, scored: Mapping[str, Scored]) -> dict[str, Scored]:
        """Find the best candidate with one λ for all experts, by method of the baselines."""
        best: dict[str, Scored] = {}
        for name in self.baselines:
            method = self.method(name).name
            shared = (s for s in scored.values() if s.recipe.is_shared)
            if candidates := ranked(s for s in shared if s.recipe.method.name == method):
                best[name] = candidates[0]
        return best


def reference_recipes(experts: Iterable[str]) -> dict[str, Recipe]:
    """Make the base and each expert as recipes, by the label of their row on the leaderboard."""
    names = tuple(experts)
    zero = dict.fromkeys(names, 0.0)
    whole = make_method("task-arithmetic", names)
    recipes = {BASE: make_recipe(whole, zero)}
    return recipes | {f"expert {e}": make_recipe(whole, zero | {e: 1.0}) for e in names}


def ensemble_recipes(spec: Spec) -> dict[str, Recipe]:
    """Make the ensembles that a spec asks for, by the label of their row."""
    names = tuple(spec.experts)
    whole = make_recipe(make_method("task-arithmetic", names), dict.fromkeys(names, 1.0))
    return {f"ensemble {name}": replace(whole, ensemble=name) for name in spec.ensembles}


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Sort best first; equal ones in an order that does not depend on which ended first.

    With several objectives by the score: the best by score is on the Pareto front.
    """
    return sorted(scored, key=lambda s: (-s.rank, s.recipe.key))


def on_front(scored: Iterable[Scored]) -> list[Scored]:
    """Return the candidates on the Pareto front: the best by score, then those far from others."""
    order = ranked(scored)
    if not order:
        return []
    values = np.array([s.objectives for s in order])
    front = np.flatnonzero(pareto_front(values))
    by_distance = front[np.argsort(-crowding_distance(values[front]), kind="stable")]
    return [order[front[0]], *(order[place] for place in by_distance if place != front[0])]


def best_of(scored: Iterable[Scored], top: int) -> list[Scored]:
    """Return the best candidates, at most so many; with several objectives those on the front."""
    order = ranked(scored)
    several = bool(order) and len(order[0].objectives) > 1
    return (on_front(order) if several else order)[:top]
