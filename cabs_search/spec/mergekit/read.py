"""mergekit's YAML as a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cabs_search.spec.load import load_plain
from cabs_search.spec.mergekit.methods import METHODS, OF_MODELS, REMARKS, Notes
from cabs_search.spec.mergekit.models import Model, absolute, layers_of, location, mapping, named
from cabs_search.spec.mergekit.parameters import Scopes
from cabs_search.spec.mergekit.passthrough import PASSTHROUGH, read_passthrough
from cabs_search.spec.mergekit.recipes import recipe_of, used_by
from cabs_search.spec.recipe_file import WHAT, RecipeFile, parse_recipe

KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
DTYPES = ("float32", "bfloat16", "float16")


class Read(NamedTuple):
    """Content of a recipe's file, or of mergekit's."""

    asked: RecipeFile
    notes: Notes
    """Lines on what could not be carried over."""
    is_mergekit: bool


def read_any(path: str | Path) -> Read:
    """Read a recipe's file or mergekit's.

    Raises:
        ValueError: it is neither.

    """
    values, notes = load_plain(path, WHAT), Notes()
    if "merge_method" not in values:
        return Read(parse_recipe(values, str(path), Path(path).parent), notes, False)
    try:
        return Read(read_mergekit(values, notes), notes, True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_mergekit(values: Mapping[str, Any], notes: Notes) -> RecipeFile:
    """Make a recipe of mergekit's values; ``notes`` receives what could not be carried over.

    Raises:
        ValueError: the method is not here, or models or values are missing.

    """
    name = values["merge_method"]
    if name == PASSTHROUGH:
        stacked = read_passthrough(values, notes)
        return replace(stacked, dtype=_others(values, str(stacked.base), notes))
    if name not in METHODS:
        known = ", ".join((*METHODS, PASSTHROUGH))
        raise ValueError(f"merge_method: must be one of {known}, but got {name!r}")
    parameters = mapping("parameters", values.get("parameters"))
    base_given = values.get("base_model")
    base = None if base_given is None else location("base_model", base_given, None)
    models, of_slice = _models(values, base)
    shared = (of_slice, parameters)
    if name in OF_MODELS:
        base, models = _with_base(name, base, models, shared, notes)
    if base is None:
        raise ValueError(f"base_model: {name} needs one here")
    experts = named([m for m in models if name in OF_MODELS or m.location != base])
    if not experts:
        raise ValueError("models: a model beside the base is needed")
    scopes = {e: (m.parameters, *shared) for e, m in experts.items()}
    first = next((e for e, model in experts.items() if model.location == base), "")
    recipe = recipe_of(name, scopes, layers_of(base), notes, first)
    if recipe.cancels:
        notes.lose("parameters.weight: weights that sum up to 0 leave the base's tensors here")
    _note_unused(name, [*shared, *(model.parameters for model in models)], notes)
    if name in REMARKS:
        notes.note(f"merge_method: {REMARKS[name]}")
    return RecipeFile(
        recipe=recipe,
        base=base,
        experts={e: m.location for e, m in experts.items()},
        dtype=_others(values, base, notes),
    )


def _models(values: Mapping[str, Any], base: str | None) -> tuple[list[Model], Mapping[str, Any]]:
    """Return the models, and the parameters of the one slice of layers that names them."""
    given, field = values.get("models"), "models"
    own: Mapping[str, Any] = {}
    if slices := values.get("slices"):
        if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], Mapping):
            raise ValueError("slices: only passthrough stacks layers here; others take one slice")
        own = mapping("slices[0].parameters", slices[0].get("parameters"))
        given, field = slices[0].get("sources"), "slices[0].sources"
    if "modules" in values:
        raise ValueError("modules: not here; name the models in models")
    if not isinstance(given, list) or not given:
        raise ValueError(f"{field}: a list of models is needed, but got {given!r:.100}")
    found = []
    for place, one in enumerate(given):
        where = f"{field}[{place}]"
        one = mapping(where, one)
        if slices:
            _check_whole(where, one.get("layer_range"), base or _first(given[0]))
        parameters = mapping(f"{where}.parameters", one.get("parameters"))
        found.append(Model(location(f"{where}.model", one.get("model"), base), parameters))
    return found, own


def _first(source: Any) -> str:
    where = "slices[0].sources[0]"
    return location(f"{where}.model", mapping(where, source).get("model"), None)


def _check_whole(where: str, layers: Any, base: str) -> None:
    count = layers_of(base)
    if layers != [0, count]:
        raise ValueError(
            f"{where}.layer_range: all layers must be taken, [0, {count or 'number of layers'}],"
            f" but got {layers}"
        )


def _with_base(
    name: str, base: str | None, models: list[Model], shared: Scopes, notes: Notes
) -> tuple[str | None, list[Model]]:
    """Return base and models of a method of whole models, of which the base is one."""
    if base is None and name != "slerp":
        notes.note("base_model: there is none; the first model is, with its tokenizer and config")
        return models[0].location, models
    if base is not None and all(model.location != base for model in models):
        if name == "linear" and not any("weight" in scope for scope in shared):
            raise ValueError("base_model: linear takes it as one of models, which has no weight")
        models = [*models, Model(base, {})]
    return base, models


def _note_unused(name: str, scopes: Scopes, notes: Notes) -> None:
    for scope in scopes:
        for key in scope:
            if key == "int8_mask":
                notes.note("parameters.int8_mask: about memory; it changes no weight")
            elif key not in used_by(name):
                notes.note(f"parameters.{key}: {name} does not use it")


def _others(values: Mapping[str, Any], base: str, notes: Notes) -> str | None:
    """Return the dtype; note the other fields."""
    for key in values:
        if key == "chat_template":
            notes.note("chat_template: the base's is kept")
        elif key not in (*KEYS, "tokenizer_source", "tokenizer"):
            notes.note(f"{key}: no field of mergekit's")
    tokenizer = mapping("tokenizer", values.get("tokenizer"))
    source = values.get("tokenizer_source") or tokenizer.get("source")
    if tokenizer and not source:
        source = "union"
    if source and source != "base" and absolute(str(source)) != base:
        notes.lose(f"tokenizer_source: the tokenizer is always the base's here, but got {source}")
    for key in ("tokens", "pad_to_multiple_of"):
        if tokenizer.get(key):
            notes.lose(f"tokenizer.{key}: embeddings have the base's rows here")
    dtype = values.get("dtype") and str(values["dtype"]).removeprefix("torch.")
    out = values.get("out_dtype") and str(values["out_dtype"]).removeprefix("torch.")
    if (dtype or "float32") != "float32":
        notes.note(f"dtype: sums are float32 here, and only their result is {out or dtype}")
    found = out or dtype or None
    if found and found not in DTYPES:
        raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, but got {found}")
    return found
