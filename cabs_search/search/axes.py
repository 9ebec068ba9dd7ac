"""The same search for each value of something: methods, orders, n:m, densities, or two of these
crossed.

Every value is a study of its own with the same budget, over one record, so that all are scored on
the same items and nothing is scored twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cabs_search.merging.masks.rules import MASKS, check_density, parse_nm, settings
from cabs_search.merging.recipe import METHOD_NAMES, Method, split_name
from cabs_search.search.candidates import methods_of
from cabs_search.spec.space import Baseline
from cabs_search.spec.study import Spec

AXES = ("method", "order", "nm", "density")
DENSITIES = (0.1, 0.25, 0.5, 0.75)
"""What is compared where a spec names no densities."""
MOST_METHODS = 5000
"""Methods of a row that are held against those of others."""
MOST_SHARED = 8
"""Values of λ, shared by all experts, that each study begins with where the spec gives none."""
REFERENCE = "task-arithmetic"
MOST_CONFIRMED = 3
"""Candidates of each value that are confirmed: a row is the best of them by search score."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One row of a comparison."""

    label: str
    """The axes' values, such as ``dare 0.25``."""
    values: tuple[str, ...]
    """Values of the axes, in their order."""
    spec: Spec
    """Its own space and budget."""
    same_as: str | None = None
    """The row that is the same study, such as Task Arithmetic at another density."""
    is_reference: bool = False
    """Whether it is no value of an axis, but what all are held against."""


def experiment_name(spec: Spec, over: Sequence[str]) -> str:
    """What a comparison is called in MLflow, and its folder by default."""
    return f"{spec.name}-over-{'-'.join(text.partition('=')[0] for text in over)}"


def axis_values(spec: Spec, over: Sequence[str]) -> list[Value]:
    """The rows of a comparison.

    Args:
        spec: the study.
        over: one or two of ``method``, ``order``, ``nm``, ``density``; ``AXIS=V,V`` names the
            values to compare, else
            they are the spec's own, all methods, or DENSITIES.

    Raises:
        ValueError: no such axis or value, or a single one.

    """
    axes = [_axis(spec, text) for text in over]
    names = {name for name, _ in axes}
    if (
        not 1 <= len(axes) <= 2 or len(names) < len(axes) or {"nm", "density"} == names
    ):  # which are one thing
        raise ValueError(
            f"--over: one axis or two different ones are needed, but got {', '.join(over)}"
        )
    found: list[Value] = []
    known: dict[frozenset[Method], str] = {}
    for chosen in itertools.product(*(texts for _, texts in axes)):
        label = " ".join(chosen)
        try:
            own = _with(spec, label, dict(zip((name for name, _ in axes), chosen, strict=True)))
        except ValueError as error:
            raise ValueError(f"--over: {str(error).removeprefix('--over: ')}") from None
        methods = frozenset(itertools.islice(methods_of(own), MOST_METHODS))
        found.append(Value(label=label, values=chosen, spec=own, same_as=known.get(methods)))
        for other, theirs in known.items():
            if methods & other and methods != other:
                raise ValueError(
                    f"--over: {theirs} and {label} are partly the same:"
                    f" {min(map(str, methods & other))}"
                )
        known.setdefault(methods, label)
    if len(known) < 2:
        raise ValueError(
            f"--over: two values at the least are needed, but {', '.join(over)} gives"
            f" {', '.join(known.values())}"
        )
    if not any(v.label == REFERENCE or REFERENCE in v.spec.space.method for v in found):
        own = _with(spec, REFERENCE, {"method": REFERENCE})
        found.append(Value(label=REFERENCE, values=(REFERENCE,), spec=own, is_reference=True))
    return found


def _axis(spec: Spec, text: str) -> tuple[str, list[str]]:
    name, given, listed = text.partition("=")
    if name not in AXES:
        raise ValueError(f"--over: one of {', '.join(AXES)} is needed, but got {name}")
    if given:
        return name, [value.strip() for value in listed.split(",") if value.strip()]
    match name:
        case "method":
            return name, list(METHOD_NAMES)
        case "order":
            return name, [">".join(order) for order in spec.orders]
        case "nm":
            return name, [f"{n}:{m}" for n, m in spec.space.nm]
        case _:
            return name, [f"{d:g}" for d in spec.space.density or DENSITIES]


def _with(spec: Spec, label: str, chosen: Mapping[str, str]) -> Spec:
    """A spec whose space is one value of each axis, for the methods on which the axes make a
    difference.
    """
    space = spec.space
    for axis, text in chosen.items():
        match axis:
            case "method":
                split_name(text)
                space = space.but(method=(text,))
            case "order":
                space = space.but(order=(_order(spec, text),))
            case "nm":
                space = space.but(nm=(parse_nm(text),), density=None)
            case "density":
                density, block = _density(text), space.nm[0][1]
                if (n := round(density * block)) < 1:
                    raise ValueError(
                        f"--over: density * m >= 1/2 must hold, but got {text} with"
                        f" {space.nm[0][0]}:{block}"
                    )
                space = space.but(density=(density,), nm=((n, block),))
    if "method" not in chosen:
        fields = {"order": {"order"}, "nm": {"nm"}, "density": {"density", "nm"}}
        of_all = set.intersection(*(fields[axis] for axis in chosen))
        fitting = tuple(m for m in space.method if of_all & set(settings(MASKS[split_name(m)[1]])))
        if not fitting:
            raise ValueError(
                f"{' and '.join(chosen)} makes no difference to {', '.join(space.method)}"
            )
        space = space.but(method=fitting)
    baselines = {m: _shared(spec, m, chosen) for m in space.method}
    search = replace(spec.search, confirm=min(spec.search.confirm, MOST_CONFIRMED))
    return replace(
        spec, name=f"{spec.name} {label}", space=space, baselines=baselines, search=search
    )


def _order(spec: Spec, text: str) -> tuple[str, ...]:
    order = tuple(text.split(">"))
    if sorted(order) != sorted(spec.experts):
        raise ValueError(
            f"--over: an order must name every expert once ({', '.join(spec.experts)}), but got"
            f" {text}"
        )
    return order


def _density(text: str) -> float:
    try:
        density = float(text)
    except ValueError:
        raise ValueError(f"--over: a density must be a number, but got {text}") from None
    check_density(density)
    return density


def _shared(spec: Spec, method: str, chosen: Mapping[str, str]) -> Baseline:
    """The shared λ that a row begins with: the spec's own, else spread over the method's range."""
    given = spec.baselines.get(method)
    if given is not None:
        amounts = (
            {} if {"nm", "density"} & chosen.keys() else {"nm": given.nm, "density": given.density}
        )
        order = {} if "order" in chosen else {"order": given.order}
        return Baseline(**{"lambda": given.lambda_}, **amounts, **order)  # type: ignore[arg-type]
    most = max(2, min(MOST_SHARED, spec.search.trials // 2))
    return Baseline(**{"lambda": spec.space.range_of(method).grid(most)})  # type: ignore[arg-type]
