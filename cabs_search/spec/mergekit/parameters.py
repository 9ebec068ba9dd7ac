"""Parameters of mergekit: values, filters by name and gradients over layers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cabs_search.merging.layers import between, depth_of
from cabs_search.merging.recipe import Groups

MOST_REGIONS = 2000
"""Most groups of tensors that filters and gradients may make."""
Scopes = Sequence[Mapping[str, Any]]
"""Parameters of a model and of the whole file, the first of which goes before."""


@dataclass(frozen=True)
class Ladder:
    """Values of one parameter: the first whose filter is part of a tensor's name counts."""

    filters: tuple[str, ...]
    """Filters; empty: all names. The last one is."""
    values: tuple[float | tuple[float, ...], ...]
    """A value for each filter, or values at anchors spread evenly over the layers."""

    @property
    def has_gradient(self) -> bool:
        """True if a value depends on the layer."""
        return any(isinstance(value, tuple) for value in self.values)

    def at(self, step: int, depth: float) -> float:
        """Return the value of a filter at a depth from 0, the first layer, to 1, the last."""
        value = self.values[step]
        return between(value, depth) if isinstance(value, tuple) else value


def ladder(name: str, scopes: Scopes, default: float | None) -> Ladder:
    """Read a parameter. Raises ValueError if it is no number, or some tensors have none."""
    filters: list[str] = []
    values: list[float | tuple[float, ...]] = []
    for setting in (*(scope[name] for scope in scopes if name in scope), default):
        is_list = isinstance(setting, list) and any(isinstance(s, Mapping) for s in setting)
        for one in setting if is_list else [setting]:
            filter_, value = None, one
            if isinstance(one, Mapping):
                filter_, value = one.get("filter"), one.get("value")
            if value is None:
                continue
            filters.append("" if filter_ in (None, "*") else str(filter_))
            values.append(_value(name, value))
            if not filters[-1]:
                return Ladder(tuple(filters), tuple(values))
    raise ValueError(f"parameters.{name}: a value is needed that has no filter")


def _value(name: str, value: Any) -> float | tuple[float, ...]:
    if isinstance(value, list) and value:
        return tuple(number(name, one) for one in value) if len(value) > 1 else number(name, *value)
    return number(name, value)


def number(name: str, value: Any) -> float:
    """Read a number. Raises ValueError if it is none."""
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"parameters.{name}: a number is needed, but got {value!r:.100}") from None


@dataclass(frozen=True)
class Region:
    """Tensors for which all parameters have one value."""

    name: str
    pattern: str
    depth: float
    steps: Mapping[tuple[str, ...], int]
    """Place in each ladder, by the ladder's filters."""

    def value(self, of: Ladder) -> float:
        """Return a parameter's value in these tensors."""
        return of.at(self.steps.get(of.filters, 0), self.depth)


def regions(ladders: Sequence[Ladder], layers: int | None) -> list[Region]:
    """Divide tensors by filters and layers; a tensor is in the first region that fits.

    Args:
        ladders: all parameters.
        layers: number of layers; None: unknown.

    Raises:
        ValueError: a gradient needs the number, or there are too many regions.

    """
    kinds = list(dict.fromkeys(one.filters for one in ladders if len(one.filters) > 1))
    has_gradient = any(one.has_gradient for one in ladders)
    if has_gradient and not layers:
        raise ValueError(
            "parameters: a gradient needs the number of layers, but the base's config.json is not"
            " at hand"
        )
    numbers = [*range(layers or 0), None] if has_gradient else [None]
    count = len(numbers)
    for kind in kinds:
        count *= len(kind)
    if count > MOST_REGIONS:
        raise ValueError(f"parameters: {MOST_REGIONS} groups of tensors at most, but got {count}")
    return list(_regions(kinds, numbers))


def _regions(kinds: Sequence[tuple[str, ...]], numbers: Sequence[int | None]) -> Iterator[Region]:
    for layer in numbers:
        for places in itertools.product(*(range(len(kind)) for kind in kinds)):
            found = [kind[place] for kind, place in zip(kinds, places, strict=True)]
            filters = list(dict.fromkeys(text for text in found if text))
            names = [*([] if layer is None else [f"layer{layer}"]), *filters]
            yield Region(
                "+".join(names) or "rest",
                _pattern(layer, filters),
                depth_of(layer, len(numbers) - 1),
                dict(zip(kinds, places, strict=True)),
            )


def _pattern(layer: int | None, filters: Sequence[str]) -> str:
    """Return the regular expression of a layer, all filters, or both."""
    in_layer = rf"\D*\.{layer}\."  # the first number in a name is the layer's
    if layer is None:
        if len(filters) < 2:
            return re.escape(filters[0]) if filters else ""
        return "^" + "".join(rf"(?=.*{re.escape(text)})" for text in filters)
    return (
        f"^{in_layer}"
        if not filters
        else f"^(?={in_layer})" + "".join(rf"(?=.*{re.escape(text)})" for text in filters)
    )


def written(groups: Groups, values: Mapping[str, float]) -> Any:
    """Return a value by group as mergekit's filters, or as a gradient over all layers.

    Raises:
        ValueError: a pattern is no part of a name.

    """
    if not groups or len(set(values.values())) == 1:
        return next(iter(values.values()))
    *inner, (rest, all_) = groups
    if all_ in ("", ".", ".*") and len(inner) > 1:
        layers = [rf"^\D*\.{place}\." for place in range(len(inner))]
        if [p for _, p in inner] == layers and values[rest] == values[inner[0][0]]:
            return [values[name] for name, _ in inner]
    filters = [(name, _filter(name, pattern)) for name, pattern in groups]
    for place, (name, text) in enumerate(filters):
        later = [other for other, longer in filters[place + 1 :] if text in longer]
        if later:
            raise ValueError(f"groups.{name}: as a filter it would take tensors of {later[0]}, too")
    return [
        {"filter": text, "value": values[name]} if text else {"value": values[name]}
        for name, text in filters
    ]


def _filter(name: str, pattern: str) -> str:
    """Return the part of a name that a pattern stands for; empty: any name."""
    if pattern in ("", ".", ".*"):
        return ""
    ends = pattern.endswith(r"(\.|$)")  # of a layer that search.refine has named
    text = pattern.removeprefix("^").removesuffix(r"(\.|$)").removesuffix("$")
    literal = re.sub(r"\\(.)", r"\1", text)
    if text not in (re.escape(literal), literal.replace(".", r"\.")):
        raise ValueError(f"groups.{name}: a filter of mergekit is part of a name, not {pattern!r}")
    return literal + ("." if ends else "")
