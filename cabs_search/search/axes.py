"""Axes of a comparison: the same search for each method, order, n:m, density, or two of these
crossed.

Every value is a study of its own with the same budget, over one record, so that all are scored
on the same items and nothing is scored twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cabs_search.merging.masks.rules import SETTINGS, settings
from cabs_search.merging.masks.settings import NM
from cabs_search.merging.method import METHOD_NAMES, Method, rule_of, split_name
from cabs_search.search.candidates import Candidates
from cabs_search.spec.space import Baseline, Range, Space
from cabs_search.spec.study import DEFAULT_TRIALS, Spec

SEARCHED = [name for name, setting in SETTINGS.items() if setting.is_searched]
AXES = tuple(dict.fromkeys(("method", "order", "nm", "density", *SEARCHED)))
"""Names of the axes: methods, and the settings that a search varies."""
DENSITIES = (0.1, 0.25, 0.5, 0.75)
"""Densities compared if a spec names none."""
MOST_METHODS = 5000
"""Methods of a row that are held against those of others."""
MOST_SHARED = 8
"""Values of λ, shared by all experts, that each study begins with if the spec gives none."""
REFERENCE = "task-arithmetic"
"""Method that all values are held against."""
MOST_CONFIRMED = 3
"""Candidates of each value that are confirmed: a row is the best of them by search score."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One row of a comparison."""

    label: str
    """Texts of the axes' values, such as ``dare 0.25``."""
    values: tuple[str, ...]
    """Text of each axis's value."""
    spec: Spec
    """Its own space and budget."""
    same_as: str | None = None
    """Label of the row that is the same study, such as Task Arithmetic at another density."""
    is_reference: bool = False
    """True if it is no value of an axis, but what all are held against."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Axis of a comparison: a name and its values."""

    name: str
    values: Mapping[str, Any]
    """Values by their texts."""


def experiment_name(study: str, over: Sequence[str]) -> str:
    """Name a comparison of a study, in MLflow and as its default folder."""
    return f"{study}-over-{'-'.join(text.partition('=')[0] for text in over)}"


def axis_values(spec: Spec, over: Sequence[str]) -> list[Value]:
    """Make the rows of a comparison.

    Args:
        spec: the study.
        over: one or two of AXES; ``AXIS=V,V`` names the values to compare, else they are the spec's
            own, all methods, or DENSITIES.

    Raises:
        ValueError: no such axis or value, or a single one.

    """
    candidates = Candidates.of(spec)
    axes = [_axis(candidates, text) for text in over]
    names = {axis.name for axis in axes}
    # n:m and density are one thing
    if not 1 <= len(axes) <= 2 or len(names) < len(axes) or names == {"nm", "density"}:
        raise ValueError(
            f"--over: one axis or two different ones are needed, but got {', '.join(over)}"
        )
    rows: list[Value] = []
    known: dict[frozenset[Method], str] = {}
    for texts in itertools.product(*(axis.values for axis in axes)):
        label = " ".join(texts)
        chosen = {axis.name: axis.values[text] for axis, text in zip(axes, texts, strict=True)}
        try:
            own = _with(spec, label, chosen)
        except ValueError as error:
            raise ValueError(f"--over: {str(error).removeprefix('--over: ')}") from None
        methods = frozenset(itertools.islice(Candidates.of(own).methods(), MOST_METHODS))
        rows.append(Value(label=label, values=texts, spec=own, same_as=known.get(methods)))
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
    if not any(v.label == REFERENCE or REFERENCE in v.spec.space.method for v in rows):
        own = _with(spec, REFERENCE, {"method": REFERENCE})
        rows.append(Value(label=REFERENCE, values=(REFERENCE,), spec=own, is_reference=True))
    return rows


def _axis(candidates: Candidates, text: str) -> Axis:
    """Read ``AXIS`` or ``AXIS=V,V``."""
    name, given, listed = text.partition("=")
    if name not in AXES:
        raise ValueError(f"--over: one of {', '.join(AXES)} is needed, but got {name}")
    if given:
        texts = [value.strip() for value in listed.split(",") if value.strip()]
        experts = candidates.experts
        return Axis(name=name, values={value: _read(name, value, experts) for value in texts})
    if name == "method":
        return Axis(name=name, values={method: method for method in METHOD_NAMES})
    if name == "density":
        values: Sequence[Any] = candidates.space.density or DENSITIES
    elif name == "nm":
        values = candidates.space.nm
    elif name == "order":
        values = candidates.orders
    else:
        methods = [m for m in candidates.space.method if name in settings(rule_of(m))]
        values = candidates.dimensions(methods[0])[name] if methods else ()
    return Axis(name=name, values={SETTINGS[name].text(value): value for value in values})


def _read(axis: str, text: str, experts: Sequence[str]) -> Any:
    """Read one value of an axis. Raises ValueError if it breaks its rule."""
    try:
        if axis == "method":
            split_name(text)
            return text
        if axis == "order":
            order = tuple(text.split(">"))
            if sorted(order) != sorted(experts):
                known = ", ".join(experts)
                raise ValueError(f"an order must name every expert once ({known}), but got {text}")
            return order
        return SETTINGS[axis].parse(text)
    except ValueError as error:
        raise ValueError(f"--over: {error}") from None


def _with(spec: Spec, label: str, chosen: Mapping[str, Any]) -> Spec:
    """Make a spec whose space has one value of each axis, for the methods that the axes change."""
    space = spec.space
    for axis, value in chosen.items():
        space = _space_with(space, axis, value)
    if "method" not in chosen:
        alike = {"density": {"density", "nm"}}  # a density is n/m as well
        wanted = set.intersection(*(alike.get(axis, {axis}) for axis in chosen))
        fitting = tuple(m for m in space.method if wanted & settings(rule_of(m)).keys())
        if not fitting:
            raise ValueError(
                f"{' and '.join(chosen)} makes no difference to {', '.join(space.method)}"
            )
        space = space.replace(method=fitting)
    baselines = {}
    for method in space.method:
        if (given := spec.baselines.get(method)) is None:
            baselines[method] = _spread(
                space.range_of(method), spec.search.trials or DEFAULT_TRIALS
            )
        else:
            baselines[method] = _kept(given, chosen)
    # rows of several studies are compared, so that none can be judged by its own study's rows
    most = min(spec.search.confirm, MOST_CONFIRMED)
    search = replace(spec.search, confirm=most, confirm_stops=False, refine=None)
    name = f"{spec.name} {label}"
    return replace(spec, name=name, space=space, baselines=baselines, search=search)


def _space_with(space: Space, axis: str, value: Any) -> Space:
    if axis == "nm":
        return space.replace(nm=(value,), density=None)
    if axis != "density":
        return space.replace(**{axis: (value,)})
    block = space.nm[0].m
    if (n := round(value * block)) < 1:
        raise ValueError(
            f"--over: density * m >= 1/2 must hold, but got {value:g} with {space.nm[0]}"
        )
    return space.replace(density=(value,), nm=(NM(n, block),))


def _spread(lambdas: Range, trials: int) -> Baseline:
    """Make the shared λ that a row begins with: spread over its range, for half the trials."""
    most = max(2, min(MOST_SHARED, trials // 2))
    return Baseline(**{"lambda": lambdas.grid(most)})  # type: ignore[arg-type]


def _kept(given: Baseline, chosen: Mapping[str, Any]) -> Baseline:
    """Copy a spec's baseline without the settings that the axes choose."""
    kept: dict[str, Any] = {} if "order" in chosen else {"order": given.order}
    if not {"nm", "density"} & chosen.keys():
        kept |= {"nm": given.nm, "density": given.density}
    return Baseline(**{"lambda": given.lambda_}, **kept)  # type: ignore[arg-type]
