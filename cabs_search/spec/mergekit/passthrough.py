"""mergekit's ``passthrough``: stacks of layers, with scales of what a layer adds.

mergekit takes the tensors before the layers from the first slice's model, and those behind them
from the last slice's. Here both are those of the merge: λ = 1 of one expert, by groups if need be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cabs_search.merging.layers import layer_of
from cabs_search.merging.masks.keep_all import KeepAll
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE, Groups, LambdaKey, Recipe, make_recipe
from cabs_search.merging.stack import MERGED, Layout, Slot, Stack, layer_range, runs_of
from cabs_search.spec.locations import local_folder
from cabs_search.spec.mergekit.methods import Notes
from cabs_search.spec.mergekit.models import Model, absolute, layers_of, location, mapping, named
from cabs_search.spec.mergekit.parameters import Ladder, Scopes, ladder
from cabs_search.spec.recipe_file import RecipeFile

PASSTHROUGH = "passthrough"
BEFORE = r"wte|wpe|embed(?!_out)"
"""Pattern of tensors before the layers; others outside the layers stand behind them."""
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight")
"""Tensors outside the layers of a model that is not at hand."""


class _Slice(NamedTuple):
    model: str
    """Location."""
    layers: range
    scopes: Scopes
    """Parameters of the source, of the slice and of the file."""


class _Names(NamedTuple):
    """A model's tensors, as far as they are at hand."""

    layout: Layout
    outside: tuple[str, ...]


def read_passthrough(values: Mapping[str, Any], notes: Notes) -> RecipeFile:
    """Make a recipe of mergekit's values.

    The first slice's model is the base if the file names none, with its tokenizer and config. A
    stack of one model's layers has this model as its expert, too.

    Raises:
        ValueError: a field is wrong, or a scale is one that is not here.

    """
    slices = list(_slices(values))
    given = values.get("base_model")
    base = slices[0].model if given is None else location("base_model", given, None)
    if given is None:
        notes.note("base_model: there is none; the first model is, with its tokenizer and config")
    others = [at for at in dict.fromkeys(one.model for one in slices) if at != base]
    experts = named([Model(at, {}) for at in others or [base]])
    name_of = {model.location: name for name, model in experts.items()} | {base: BASE}
    names, count = _names_of(base), layers_of(base)
    slots: list[Slot] = []
    for place, one in enumerate(slices):
        if count is not None and one.layers.stop > count:
            raise ValueError(
                f"slices[{place}].sources[0].layer_range: the model has {count} layers, but got"
                f" {[one.layers.start, one.layers.stop]}"
            )
        slots += _slots(one, name_of[one.model], names)
    for one in {0: slices[0], -1: slices[-1]}.values():
        _check_outside(one, names)
    for one in slices:
        for unused in (key for scope in one.scopes for key in scope if key != "scale"):
            notes.note(f"parameters.{unused}: {PASSTHROUGH} does not use it")
    ends = name_of[slices[0].model], name_of[slices[-1].model]
    return RecipeFile(
        recipe=_recipe(tuple(experts), *ends, tuple(slots)),
        base=base,
        experts={name: model.location for name, model in experts.items()},
    )


def _slices(values: Mapping[str, Any]) -> Iterator[_Slice]:
    given = values.get("slices")
    if not isinstance(given, list) or not given:
        raise ValueError(f"slices: {PASSTHROUGH} needs a list of them, but got {given!r:.100}")
    base_given = values.get("base_model")
    base = None if base_given is None else location("base_model", base_given, None)
    shared = mapping("parameters", values.get("parameters"))
    for place, one in enumerate(given):
        where = f"slices[{place}]"
        own = mapping(where, one)
        sources = own.get("sources")
        if not isinstance(sources, list) or len(sources) != 1:
            raise ValueError(f"{where}.sources: one model is needed, but got {sources!r:.100}")
        source = mapping(f"{where}.sources[0]", sources[0])
        base = base or location(f"{where}.sources[0].model", source.get("model"), None)
        scopes = [
            mapping(f"{where}.sources[0].parameters", source.get("parameters")),
            mapping(f"{where}.parameters", own.get("parameters")),
            shared,
        ]
        model = location(f"{where}.sources[0].model", source.get("model"), base)
        layers = layer_range(f"{where}.sources[0]", source.get("layer_range"))
        yield _Slice(model, layers, scopes)


def _names_of(base: str) -> _Names | None:
    """Return the base's tensors; None if they are not at hand, or have no layers."""
    from cabs_search.checkpoints.checkpoint import Checkpoint  # which loads torch

    try:
        checkpoint = Checkpoint(local_folder(base))
        tensors = set(checkpoint.names) - checkpoint.constants - checkpoint.repeated
        outside = tuple(sorted(tensor for tensor in tensors if layer_of(tensor) is None))
        return _Names(Layout.of(tensors), outside)
    except (OSError, ValueError):
        return None


def _slots(one: _Slice, source: str, names: _Names | None) -> Iterator[Slot]:
    """Yield a slice's layers with their scales."""
    scales, last = ladder("scale", one.scopes, 1.0), len(one.layers) - 1
    for place, layer in enumerate(one.layers):
        depth = place / last if last else 1.0
        yield Slot(source, layer, _scale(scales, depth, layer, names))


def _scale(scales: Ladder, depth: float, layer: int, names: _Names | None) -> float:
    """Return the scale of a layer's additions. Raises ValueError if other tensors are scaled."""
    if all(scales.at(step, depth) == 1 for step in range(len(scales.filters))):
        return 1.0
    if names is None:
        raise ValueError("parameters.scale: needs the base's tensors, which are not at hand")
    layout = names.layout
    found = {True: set[float](), False: set[float]()}
    for rest in layout.rests:
        value = _value(scales, depth, layout.name(layer, rest))
        found[layout.scales(rest)].add(value)
    if found[False] != {1.0} or len(found[True]) != 1:
        raise ValueError(
            f"parameters.scale: must be one for {' and '.join(layout.branch_ends)}, and 1 for the"
            f" other tensors of a layer, but is {', '.join(f'{v:g}' for v in sorted(found[True]))}"
            f" and {', '.join(f'{v:g}' for v in sorted(found[False]))} in layer {layer}"
        )
    return found[True].pop()


def _value(scales: Ladder, depth: float, tensor: str) -> float:
    """Return the value of the first filter that is part of a tensor's name."""
    step = next(step for step, text in enumerate(scales.filters) if text in tensor)
    return scales.at(step, depth)


def _check_outside(one: _Slice, names: _Names | None) -> None:
    """Raise ValueError if tensors outside the layers are scaled."""
    scales = ladder("scale", one.scopes, 1.0)
    for tensor in names.outside if names else OUTSIDE:
        if _value(scales, 0.0, tensor) != 1:
            raise ValueError(f"parameters.scale: must be 1 outside the layers, but not of {tensor}")


def _recipe(experts: Sequence[str], first: str, last: str, stack: Stack) -> Recipe:
    """Return the recipe whose tensors outside the layers are those of the two models."""
    method = make_method("task-arithmetic", experts)
    if first == last:
        return make_recipe(method, {e: float(e == first) for e in experts}, stack=stack)
    groups: Groups = (("before", BEFORE), ("rest", "."))
    lambdas: dict[LambdaKey, float] = {}
    for expert in experts:
        lambdas[LambdaKey(expert, "before")] = float(expert == first)
        lambdas[LambdaKey(expert, "rest")] = float(expert == last)
    return make_recipe(method, lambdas, groups, stack=stack)


def write_passthrough(asked: RecipeFile, models: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """Return the values of mergekit's file.

    Args:
        asked: the recipe, with a stack.
        models: base and experts, as mergekit names them.
        notes: receives what could not be carried over.

    Raises:
        ValueError: layers of the merge stand in the stack, or scales of unknown modules.

    """
    recipe = asked.recipe
    if any(slot.source == MERGED for slot in recipe.stack):
        raise ValueError(
            f"stack: mergekit's {PASSTHROUGH} has layers of models alone, but got some of the merge"
        )
    names = _names_of(str(asked.base))
    slices = []
    for source, start, end, scale in runs_of(recipe.stack):
        own: dict[str, Any] = {"model": models[source], "layer_range": [start, end]}
        if scale != 1:
            if names is None:
                raise ValueError("stack: scales need the base's tensors, which are not at hand")
            ends = [{"filter": name, "value": scale} for name in names.layout.branch_ends]
            own["parameters"] = {"scale": [*ends, {"value": 1.0}]}
        slices.append({"sources": [own]})
    at = {BASE: str(asked.base), **asked.experts}
    first, last = at[recipe.stack[0].source], at[recipe.stack[-1].source]
    for tensor in names.outside if names else OUTSIDE:
        expected = first if re.search(BEFORE, tensor) else last
        if _owner(recipe, at, tensor) != absolute(expected):
            notes.lose(
                "stack: mergekit takes what is before the layers from the first one's model, and"
                f" what is behind them from the last one's, but not so {tensor}"
            )
            break
    values: dict[str, Any] = {"merge_method": PASSTHROUGH}
    if models[BASE] != models[recipe.stack[0].source]:
        values["base_model"] = models[BASE]
    return values | {"slices": slices}


def _owner(recipe: Recipe, at: Mapping[str, str], tensor: str) -> str | None:
    """Return the location of the model whose tensor a merge has; None if it is of several."""
    lambdas = {expert: recipe.lambda_of(expert, tensor) for expert in recipe.experts}
    own = [expert for expert, value in lambdas.items() if value]
    if not own:
        return absolute(at[BASE])
    is_plain = recipe.method.is_linear and isinstance(recipe.method.mask, KeepAll)
    return absolute(at[own[0]]) if is_plain and lambdas[own[0]] == 1 and len(own) == 1 else None
