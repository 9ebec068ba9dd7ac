"""Recipes of mergekit's methods, from their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cabs_search.merging.masks.settings import collapsed
from cabs_search.merging.method import Method, make_method
from cabs_search.merging.recipe import LambdaKey, Recipe, make_recipe
from cabs_search.spec.mergekit.methods import (
    EXTRA,
    FIXED,
    OF_ONE,
    PLAIN,
    SUMMED,
    Notes,
    Summed,
    note_pruning,
)
from cabs_search.spec.mergekit.parameters import Ladder, Region, Scopes, ladder, number, regions

CLOSE = 1e-6
"""Distance from 1 at which weights still sum to 1, and from 0 at which ``nuslerp`` ignores them."""
ScopesOf = Mapping[str, Scopes]
"""Parameters by expert: its own, those of the slice, those of the file."""
ByRegion = dict[str, dict[str, float]]
"""Values by expert and region."""


def recipe_of(
    name: str, scopes: ScopesOf, layers: int | None, notes: Notes, first: str = ""
) -> Recipe:
    """Return a method's recipe.

    Args:
        name: mergekit's name of the method.
        scopes: parameters.
        layers: number of the model's layers; None: unknown.
        notes: receives what could not be carried over.
        first: of ``slerp``, the expert that is the file's base.

    Raises:
        ValueError: a value is missing, is no number, or has no meaning here.

    """
    shared = _shared(scopes)
    for key, value in FIXED.get(name, {}).items():
        found = next((scope[key] for scope in shared if key in scope), value)
        if _plain_value(found) != value:
            notes.lose(f"parameters.{key}: it is always {value} here, but got {found}")
    if name in SUMMED:
        return _summed(SUMMED[name], scopes, layers, notes)
    if name in PLAIN:
        return _plain(name, scopes, notes)
    if name == "linear":
        return _linear(scopes, layers, notes)
    if name == "slerp":
        return _slerp(scopes, first, layers)
    return _nuslerp(scopes, layers) if name == "nuslerp" else _multislerp(scopes, layers)


def used_by(name: str) -> set[str]:
    """Return the parameters of a method that are read, or have one value here."""
    fixed = set(FIXED.get(name, {}))
    if name in SUMMED:
        kind = SUMMED[name]
        pruning = set() if kind.mask == "task-arithmetic" else {"density", "rescale"}
        return {"weight", "lambda", "normalize"} | pruning | set(EXTRA.get(kind.mask, ())[:1])
    if name in PLAIN:
        return set(PLAIN[name][1]) | fixed
    own = {
        "linear": {"weight", "normalize"},
        "slerp": {"t"},
        "nuslerp": {"weight", "nuslerp_row_wise"},  # the latter only without nuslerp_flatten
        "multislerp": {"weight", "normalize_weights"},
    }
    return own[name] | fixed


def _shared(scopes: ScopesOf) -> Scopes:
    return next(iter(scopes.values()))[1:]


def _plain_value(value: Any) -> Any:
    """Return a number that YAML takes for a text, such as 1e-5, as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _recipe(method: Method, values: ByRegion, parts: list[Region]) -> Recipe:
    """Make a recipe from λ by expert and region."""
    if len(parts) == 1:
        return make_recipe(
            method, {LambdaKey(e): next(iter(v.values())) for e, v in values.items()}
        )
    groups = tuple((part.name, part.pattern) for part in parts)
    keys = {LambdaKey(e, group): v[group] for e, v in values.items() for group, _ in groups}
    return make_recipe(method, keys, groups)


def _summed(kind: Summed, scopes: ScopesOf, layers: int | None, notes: Notes) -> Recipe:
    shared = _shared(scopes)
    normalize = _flag("normalize", shared, kind.normalize)
    weights = {e: ladder("weight", own, None) for e, own in scopes.items()}
    factor = ladder("lambda", shared, 1.0)
    parts = regions([*weights.values(), factor], layers)
    values: ByRegion = {expert: {} for expert in scopes}
    for part in parts:
        own = {e: part.value(weight) for e, weight in weights.items()}
        total = sum(own.values())
        if kind.elects:
            if len(set(own.values())) > 1 or min(own.values()) <= 0:
                notes.lose(
                    "parameters.weight: λ have no vote on signs here, weights have: they must be"
                    f" equal and above 0, but are {', '.join(f'{w:g}' for w in own.values())}"
                )
            divisor = total / len(own) if normalize and total else 1.0
        else:
            divisor = total if normalize and abs(total) >= 1e-8 else 1.0
        for expert, weight in own.items():
            values[expert][part.name] = weight * part.value(factor) / divisor
    combine = ("ties-" if normalize else "ties-sum-") if kind.elects else ""
    mask = _mask(kind, shared, notes)
    given = _pruning(mask, scopes, notes)
    method = make_method(f"{combine}{mask}", tuple(scopes), **given)
    return _recipe(method, values, parts)


def _mask(kind: Summed, shared: Scopes, notes: Notes) -> str:
    """Return the mask rule, which with ``rescale`` may be another."""
    if kind.mask == "task-arithmetic":
        return kind.mask
    rescale = _flag("rescale", shared, kind.rescale)
    if kind.mask == "dare" and not rescale:
        return "random"
    if rescale != (kind.mask in ("dare", "della")):
        notes.lose(f"parameters.rescale: {str(rescale).lower()} is not here with {kind.mask}")
    return kind.mask


def _pruning(mask: str, scopes: ScopesOf, notes: Notes) -> dict[str, Any]:
    """Return densities, gamma and epsilon."""
    if mask == "task-arithmetic":
        return {}
    densities = {e: min(1.0, _one("density", own, 1.0, notes)) for e, own in scopes.items()}
    if min(densities.values()) <= 0:
        raise ValueError("parameters.density: must be above 0")
    note_pruning(mask, list(densities.values()), notes)
    given: dict[str, Any] = {"density": collapsed(densities)}
    if mask in EXTRA:
        name, default = EXTRA[mask]
        values = {_one(name, own, default, notes) for own in scopes.values()}
        if len(values) > 1:
            notes.lose(f"parameters.{name}: all models must have one value here")
        given[name] = max(values)
    return given


def _one(name: str, scopes: Scopes, default: float, notes: Notes) -> float:
    """Return a parameter that has one value in all tensors here."""
    found: Ladder = ladder(name, scopes, default)
    if len(found.filters) > 1 or found.has_gradient:
        notes.lose(f"parameters.{name}: filters and gradients of it are not here")
    return found.at(len(found.filters) - 1, 0.0)


def _flag(name: str, shared: Scopes, default: bool) -> bool:
    found = next((scope[name] for scope in shared if name in scope), default)
    if not isinstance(found, (bool, int)):
        raise ValueError(f"parameters.{name}: true or false is needed, but got {found!r:.100}")
    return bool(found)


def _weights(
    scopes: ScopesOf, default: float | None, layers: int | None
) -> tuple[list[Region], ByRegion]:
    """Return the regions of all weights, and the weights by expert and region."""
    weights = {e: ladder("weight", own, default) for e, own in scopes.items()}
    parts = regions(list(weights.values()), layers)
    return parts, {e: {part.name: part.value(w) for part in parts} for e, w in weights.items()}


def _change(
    parts: list[Region], values: ByRegion, change: Callable[[list[float]], list[float]]
) -> None:
    """Replace all experts' values in each region by what ``change`` makes of them."""
    for part in parts:
        changed = change([own[part.name] for own in values.values()])
        for own, value in zip(values.values(), changed, strict=True):
            own[part.name] = value


def _linear(scopes: ScopesOf, layers: int | None, notes: Notes) -> Recipe:
    parts, values = _weights(scopes, None, layers)
    normalize = _flag("normalize", _shared(scopes), True)
    for part in parts:
        total = sum(own[part.name] for own in values.values())
        if not normalize and abs(total - 1) > CLOSE:
            notes.lose(
                f"parameters.normalize: false needs weights that sum to 1, but got {total:g}"
            )
    method = make_method("linear" if normalize else "task-arithmetic", tuple(scopes))
    return _recipe(method, values, parts)


def _nuslerp(scopes: ScopesOf, layers: int | None) -> Recipe:
    """Return weights as λ; those that sum up to 0 are in mergekit as if they were equal."""
    parts, values = _weights(scopes, None, layers)
    _change(parts, values, lambda own: own if abs(sum(own)) >= CLOSE else [1.0] * len(own))
    return _recipe(make_method("nuslerp", tuple(scopes)), values, parts)


def _multislerp(scopes: ScopesOf, layers: int | None) -> Recipe:
    """Return weights times the number of models as λ: the length is their sum, here their mean."""
    parts, values = _weights(scopes, 1.0, layers)
    # one model is itself, whatever its weight is
    normalize = _flag("normalize_weights", _shared(scopes), True) or len(scopes) == 1

    def change(own: list[float]) -> list[float]:
        total = sum(own) if normalize else 1.0
        if total == 0:
            raise ValueError("parameters.weight: weights must not sum up to 0")
        return [len(own) * weight / total for weight in own]

    _change(parts, values, change)
    return _recipe(make_method("multi-slerp", tuple(scopes)), values, parts)


def _slerp(scopes: ScopesOf, first: str, layers: int | None) -> Recipe:
    """Return 1 - t as λ of the file's base, t as the other model's."""
    if len(scopes) != 2:
        raise ValueError(f"models: slerp takes two with base_model, but got {len(scopes)}")
    share = ladder("t", _shared(scopes), None)
    parts = regions([share], layers)
    values: ByRegion = {}
    for expert in scopes:
        shares = {part.name: part.value(share) for part in parts}
        values[expert] = {name: 1 - t if expert == first else t for name, t in shares.items()}
    return _recipe(make_method("slerp", tuple(scopes)), values, parts)


def _plain(name: str, scopes: ScopesOf, notes: Notes) -> Recipe:
    """Return the recipe of a method that has no λ."""
    ours, settings = PLAIN[name]
    shared = _shared(scopes)
    given: dict[str, Any] = {"density": 1.0} if name == "sce" else {}
    for key, setting in settings.items():
        if any(key in scope for scope in shared):
            given[setting] = _one(key, shared, 0.0, notes)
    if name in OF_ONE and len(scopes) > 1:
        raise ValueError(f"models: {name} takes one beside the base, but got {len(scopes)}")
    if name == "nearswap":
        if "limit" not in given:
            raise ValueError("parameters.t: a value is needed")
        number("t", given["limit"])
    return make_recipe(make_method(ours, tuple(scopes), **given), dict.fromkeys(scopes, 1.0))
