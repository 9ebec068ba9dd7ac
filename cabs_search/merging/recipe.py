"""Recipes: a method with its λ, the name of a merged model that every stage shares."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from cabs_search.common.formats import digest
from cabs_search.merging.combine.rules import COMBINES
from cabs_search.merging.layers import check_anchors, layer_of, spread
from cabs_search.merging.masks.rules import MASKS, identity, order_of, settings
from cabs_search.merging.masks.settings import check_choice, is_pairs
from cabs_search.merging.method import SUM, Method, check_experts, split_name
from cabs_search.merging.stack import Stack, check_slots, parse_stack, stack_as_plain, stack_text

Groups = tuple[tuple[str, str], ...]
"""Groups of tensors with λ of their own: (name, pattern); a tensor is in the first group that
fits.
"""
BASE = "base"
"""Name that the base has beside the experts' names."""
MOST_SHOWN = 12
"""Most λ that a recipe's text names one by one; of more it has each expert's least and largest."""
MOST_SHOWN_ANCHORS = 5
"""Most anchors of an expert that a recipe's text names one by one."""
ENSEMBLES = ("mean", "packllm")
"""Ways to average the experts' outputs; see ``scoring.ensemble``."""
LEAST_SUM = 1e-3
"""Sum of λ, as a share of the largest |λ|, that counts as 0 where λ are divided by it."""
MOST_LAMBDA = 1e6
"""Largest |λ|, so that float32 sums stay finite."""


class LambdaKey(NamedTuple):
    """Owner of a λ: an expert, or one group of an expert's tensors, or one of its anchors."""

    expert: str
    group: str = ""
    """Name of the group; number of the anchor, from 1, as text."""

    def __str__(self) -> str:
        return f"{self.expert}.{self.group}" if self.group else self.expert


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One merged model: a method with its settings, and λ of every task vector."""

    method: Method
    lambdas: tuple[tuple[LambdaKey, float], ...]
    """λ in the family's order of experts."""
    groups: Groups = ()
    layers: int = 0
    """Number of the model's layers, over which λ is interpolated between anchors; 0: λ has none."""
    ensemble: str = ""
    """One of ENSEMBLES: no model, but the averaged outputs of ``members``; empty: a model."""
    stack: Stack = ()
    """Layers in the place of the merge's own; empty: these."""

    @cached_property
    def members(self) -> tuple[Recipe, ...]:
        """Each expert alone, as a recipe of the same method; for an ensemble."""
        experts = self.experts
        zero = dict.fromkeys(experts, 0.0)
        return tuple(make_recipe(self.method, zero | {expert: 1.0}) for expert in experts)

    @property
    def forwards(self) -> int:
        """Number of models that read each item."""
        return len(self.experts) if self.ensemble else 1

    def anchors_of(self, expert: str) -> tuple[float, ...]:
        """Return an expert's λ at its anchors, or in its groups: the first layer's first."""
        return tuple(value for key, value in self.lambdas if key.expert == expert)

    @cached_property
    def _values(self) -> dict[LambdaKey, float]:
        """λ by expert and group; where there are anchors, by expert and layer."""
        if not self.layers:
            return dict(self.lambdas)
        return {
            LambdaKey(expert, str(layer)): value
            for expert in self.experts
            for layer, value in enumerate(spread(self.anchors_of(expert), self.layers))
        }

    @cached_property
    def _factors(self) -> dict[LambdaKey, float]:
        """Factors of vectors: λ, or its share of their sum; 0 where the sum counts as 0."""
        if not self.method.combine.normalizes:
            return self._values
        divisors = self._divisors
        return {
            key: round(value / divisors[key.group], 9) if divisors[key.group] else 0.0
            for key, value in self._values.items()
        }

    @cached_property
    def _divisors(self) -> dict[str, float]:
        """Sums of λ in each part; 0 where a sum counts as 0."""
        sums = {}
        for part, own in self.by_part.items():
            total = sum(own.values())
            sums[part] = total if abs(total) > LEAST_SUM * max(map(abs, own.values())) else 0.0
        return sums

    @property
    def cancels(self) -> bool:
        """True if λ are divided by a sum that counts as 0 somewhere: the base is left there."""
        return self.method.combine.normalizes and 0.0 in self._divisors.values()

    @property
    def by_part(self) -> dict[str, dict[str, float]]:
        """λ by expert, of each group, or of each layer where there are anchors."""
        found: dict[str, dict[str, float]] = {}
        for key, value in self._values.items():
            found.setdefault(key.group, {})[key.expert] = value
        return found

    @cached_property
    def lambda_by_name(self) -> dict[str, float]:
        """λ by ``EXPERT``, ``EXPERT.GROUP`` or ``EXPERT.ANCHOR``, as JSON and MLflow name them."""
        return {str(key): value for key, value in self.lambdas}

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts in the family's order."""
        return tuple(dict.fromkeys(key.expert for key, _ in self.lambdas))

    @property
    def order(self) -> tuple[str, ...]:
        """Experts in the order their vectors are pruned and added."""
        return order_of(self.method.mask, self.experts)

    @property
    def is_shared(self) -> bool:
        """True if one λ serves all experts, and layers stand as they are."""
        return self._has_one_lambda and not self.stack

    @property
    def _has_one_lambda(self) -> bool:
        return len({value for _, value in self.lambdas}) == 1

    def lambda_of(self, expert: str, tensor: str) -> float:
        """Return λ of one expert's vector in one tensor, or its share where they are normalised.

        Raises:
            ValueError: it is an ensemble, or a tensor is in no group.

        """
        if self.ensemble:
            raise ValueError(f"the {self} is no single model")
        return self._factors[LambdaKey(expert, self._group_of(tensor))]

    def _group_of(self, tensor: str) -> str:
        """Return the key's group in ``_values``. Raises ValueError if a tensor is in none."""
        if self.groups:
            return group_of(self.groups, tensor)
        if not self.layers:
            return ""
        layer = layer_of(tensor) or 0  # outside all layers the first anchor's λ counts
        if layer >= self.layers:
            raise ValueError(
                f"layers: must be the model's number, but {tensor} is beyond {self.layers}"
            )
        return str(layer)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, from which ``from_dict`` makes an equal recipe."""
        mask = self.method.mask
        plain: dict[str, Any] = {"method": self.method.name}
        for name, one in settings(mask).items():
            plain[name] = one.as_plain(getattr(mask, name))
        if self.groups:  # as a list, because their order counts
            plain["groups"] = [list(group) for group in self.groups]
        if self.layers:
            plain["layers"] = self.layers
        if self.ensemble:
            plain["ensemble"] = self.ensemble
        if self.stack:
            plain["stack"] = stack_as_plain(self.stack)
        return plain | {"lambda": self.lambda_by_name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Make the recipe that ``as_dict`` described.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the values are something else.

        """
        combine, mask = split_name(values["method"])
        rule = MASKS[mask]
        chosen = {name: one.from_plain(values[name]) for name, one in settings(rule).items()}
        groups = tuple((str(name), str(pattern)) for name, pattern in values.get("groups", ()))
        layers = int(values.get("layers", 0))
        has_parts = bool(groups or layers)
        lambdas = {lambda_key(k, has_parts): float(v) for k, v in values["lambda"].items()}
        experts = tuple(dict.fromkeys(key.expert for key in lambdas))
        for name, one in settings(rule).items():
            if not is_pairs(chosen[name]):
                one.check(chosen[name], experts)
            elif sorted(dict(chosen[name])) != sorted(experts):
                raise ValueError(f"{name}: every expert must have one, but got {values[name]}")
        for key, value in lambdas.items():
            if not abs(value) <= MOST_LAMBDA:
                raise ValueError(f"-1e6 <= λ <= 1e6 must hold, but got {key}={value}")
        method = Method(mask=rule(**chosen), combine=COMBINES[combine]())
        ensemble = str(values.get("ensemble", ""))
        if ensemble:
            check_choice("ensemble", ensemble, ENSEMBLES)
        stack = parse_stack(values["stack"], experts, BASE) if "stack" in values else ()
        recipe = cls(
            method=method,
            lambdas=tuple(lambdas.items()),
            groups=groups,
            layers=layers,
            stack=stack,
            ensemble=ensemble,
        )
        recipe.check_layers()
        return recipe

    def check_layers(self) -> None:
        """Raise ValueError unless each expert has the same anchors, and none has groups."""
        if not self.layers:
            return
        if self.groups:
            raise ValueError("layers: must not stand beside groups")
        experts = self.experts
        count = len(self.lambdas) // max(1, len(experts))
        check_anchors(count, self.layers)
        names = [LambdaKey(e, name) for e in experts for name in anchor_names(count)]
        if [key for key, _ in self.lambdas] != names:
            raise ValueError(
                f"lambda: every expert must have {count} anchors, but got"
                f" {', '.join(self.lambda_by_name)}"
            )

    @cached_property
    def key(self) -> str:
        """Short name, equal for equal recipes: 16 hexadecimal digits."""
        return digest(json.dumps(self.as_dict(), sort_keys=True))

    @cached_property
    def sum_key(self) -> str:
        """Short name of Σ λᵢ·τ̃ᵢ: recipes that share it are surely the same merged model.

        A vector with λ = 0 is not in the sum. It is in the name only if it shapes another one: by
        being pruned before it, by having a vote on its signs, or by an angle with it.
        """
        mask, order = self.method.mask, self.order
        identities = [[expert, identity(mask, expert)] for expert in order]
        terms: list[Any] = []
        groups: Groups = ()
        for place, expert in enumerate(order):
            by_group = {k.group: value for k, value in self._factors.items() if k.expert == expert}
            if not any(by_group.values()):
                continue
            shaped_by = identities[: place + 1] if self.method.has_order else [identities[place]]
            if not self.method.is_linear or mask.sees_all:
                shaped_by = identities
            values = sorted(set(by_group.values()))
            if len(values) > 1:
                groups = self.groups  # those of anchors are layers, which the names tell
            terms.append([shaped_by, values[0] if len(values) == 1 else by_group, expert])
        # a sum with normalised λ is a sum as well
        combine = SUM.name if self.method.is_linear else self.method.combine.name
        combine = combine if terms else ""
        apart: list[Any] = [stack_as_plain(self.stack)] if self.stack else []
        apart += [self.ensemble] if self.ensemble else []
        return digest(json.dumps([combine, terms, groups, *apart], sort_keys=True))

    def __str__(self) -> str:
        if self.ensemble:
            return f"{self.ensemble} of the outputs of {', '.join(self.experts)}"
        text = self._merge_text()
        return f"{text} | {self.stack_text}" if self.stack else text

    @property
    def stack_text(self) -> str:
        """The stack in words; empty if there is none."""
        return stack_text(self.stack)

    def _merge_text(self) -> str:
        """Write the recipe in words, but for its stack."""
        if self._has_one_lambda:
            return f"{self.method} λ={self.lambdas[0][1]:g}"
        if not self.layers and len(self.lambdas) <= MOST_SHOWN:
            shown = [f"{key}={value:g}" for key, value in self.lambdas]
        else:
            shown = [f"{expert}={self._short(expert)}" for expert in self.experts]
        return " ".join([str(self.method), *shown])

    def _short(self, expert: str) -> str:
        """Write an expert's λ in one word: those at anchors, or the least and the largest."""
        values = self.anchors_of(expert)
        if self.layers and len(values) <= MOST_SHOWN_ANCHORS:
            return arrows(values)
        return f"{min(values):.2g}…{max(values):.2g}"


def lambda_key(name: str, has_parts: bool) -> LambdaKey:
    """Read ``EXPERT``, or with groups or anchors ``EXPERT.GROUP``."""
    return LambdaKey(*name.split(".", 1)) if has_parts else LambdaKey(name)


def arrows(anchors: Sequence[float]) -> str:
    """Write the values at anchors in one word; one value if all are equal."""
    return "→".join(f"{value:g}" for value in anchors[: None if len(set(anchors)) > 1 else 1])


def anchor_names(count: int) -> tuple[str, ...]:
    """Return the names of anchors in keys of λ: their numbers, from 1."""
    return tuple(str(place) for place in range(1, count + 1))


def make_recipe(
    method: Method,
    lambdas: Mapping[LambdaKey, float] | Mapping[str, float],
    groups: Groups = (),
    layers: int = 0,
    stack: Stack = (),
) -> Recipe:
    """Make a recipe with λ rounded to 1e-9, so that 0.1 + 0.2 and 0.3 are one candidate.

    Args:
        method: the method.
        lambdas: λ by expert, or by key. Groups, or anchors, in which every expert has one λ are
            left out: it is the same merged model.
        groups: groups of tensors.
        layers: number of the model's layers, where λ are those of anchors; else 0.
        stack: layers in the place of the merge's own; scales are rounded as λ are.

    Raises:
        ValueError: a λ or a scale is not finite, or too large for float32 sums; the method cannot
            merge so many experts; there are more anchors than layers, or too many layers.

    """
    rounded: dict[LambdaKey, float] = {}
    for name, value in lambdas.items():
        if not abs(value) <= MOST_LAMBDA:
            raise ValueError(f"-1e6 <= λ <= 1e6 must hold, but got {name}={value}")
        key = lambda_key(name, bool(groups or layers)) if isinstance(name, str) else name
        rounded[key] = round(float(value), 9) + 0.0
    if groups or layers:
        by_expert: dict[str, set[float]] = {}
        for key, value in rounded.items():
            by_expert.setdefault(key.expert, set()).add(value)
        if all(len(values) == 1 for values in by_expert.values()):
            groups, layers = (), 0
            rounded = {LambdaKey(expert): values.pop() for expert, values in by_expert.items()}
    check_slots(stack)
    recipe = Recipe(
        method=method,
        lambdas=tuple(rounded.items()),
        groups=groups,
        layers=layers,
        stack=tuple(slot._replace(scale=round(float(slot.scale), 9) + 0.0) for slot in stack),
    )
    recipe.check_layers()
    check_experts([method.name], recipe.experts, "method")
    return recipe


@lru_cache(maxsize=100_000)
def group_of(groups: Groups, tensor: str) -> str:
    """Return the group that a tensor is in. Raises ValueError if it is in none."""
    for name, pattern in groups:
        if re.search(pattern, tensor):
            return name
    raise ValueError(
        f"every merged tensor must be in a group of λ, but {tensor} is in none of"
        f" {', '.join(n for n, _ in groups)}"
    )
