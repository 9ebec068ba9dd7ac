"""mergekit's YAML as a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cabs_search.merging.recipe import BASE
from cabs_search.spec.load import load_plain
from cabs_search.spec.locations import local_folder
from cabs_search.spec.mergekit.methods import METHODS, OF_MODELS, REMARKS, Notes
from cabs_search.spec.mergekit.parameters import Scopes
from cabs_search.spec.mergekit.recipes import recipe_of, used_by
from cabs_search.spec.recipe_file import WHAT, RecipeFile, located, parse_recipe

KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Model:
    location: str
    parameters: Mapping[str, Any]


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
    if name not in METHODS:
        raise ValueError(f"merge_method: must be one of {', '.join(METHODS)}, but got {name!r}")
    parameters = _mapping("parameters", values.get("parameters"))
    base_given = values.get("base_model")
    base = None if base_given is None else _location("base_model", base_given, None)
    models, of_slice = _models(values, base)
    shared = (of_slice, parameters)
    if name in OF_MODELS:
        base, models = _with_base(name, base, models, shared, notes)
    if base is None:
        raise ValueError(f"base_model: {name} needs one here")
    experts = _named([m for m in models if name in OF_MODELS or m.location != base])
    if not experts:
        raise ValueError("models: a model beside the base is needed")
    scopes = {e: (m.parameters, *shared) for e, m in experts.items()}
    first = next((e for e, model in experts.items() if model.location == base), "")
    recipe = recipe_of(name, scopes, _layers(base), notes, first)
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


def _mapping(field: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{field}: a mapping is needed, but got {value!r:.100}")
    return value or {}


def _location(field: str, given: Any, base: str | None) -> str:
    """Return the location of a model; of ``base+adapter`` the adapter's."""
    text = given
    if isinstance(given, Mapping):
        parts = [_path(given.get(key)) for key in ("model", "lora")]
        text = "+".join(part for part in parts if part)
    if not isinstance(text, str) or not text:
        raise ValueError(f"{field}: a model must be named, but got {given!r:.100}")
    whole, _, adapter = text.partition("+")
    if adapter and _absolute(whole) != base:
        raise ValueError(f"{field}: an adapter must be one of base_model, but got {text}")
    return _absolute(adapter or whole)


def _path(value: Any) -> str:
    if isinstance(value, Mapping):
        value = "@".join(str(value[key]) for key in ("path", "revision") if value.get(key))
    return str(value or "")


def _absolute(text: str) -> str:
    """Return a location whose path begins where the command is run, as mergekit's do."""
    return located(text, Path())


def _models(values: Mapping[str, Any], base: str | None) -> tuple[list[_Model], Mapping[str, Any]]:
    """Return the models, and the parameters of the one slice of layers that names them."""
    given, field = values.get("models"), "models"
    own: Mapping[str, Any] = {}
    if slices := values.get("slices"):
        if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], Mapping):
            raise ValueError("slices: stacks of layers are not here; one slice of all layers is")
        own = _mapping("slices[0].parameters", slices[0].get("parameters"))
        given, field = slices[0].get("sources"), "slices[0].sources"
    if "modules" in values:
        raise ValueError("modules: not here; name the models in models")
    if not isinstance(given, list) or not given:
        raise ValueError(f"{field}: a list of models is needed, but got {given!r:.100}")
    found = []
    for place, one in enumerate(given):
        where = f"{field}[{place}]"
        one = _mapping(where, one)
        if slices:
            _check_whole(where, one.get("layer_range"), base or _first(given[0]))
        parameters = _mapping(f"{where}.parameters", one.get("parameters"))
        found.append(_Model(_location(f"{where}.model", one.get("model"), base), parameters))
    return found, own


def _first(source: Any) -> str:
    where = "slices[0].sources[0]"
    return _location(f"{where}.model", _mapping(where, source).get("model"), None)


def _check_whole(where: str, layers: Any, base: str) -> None:
    count = _layers(base)
    if layers != [0, count]:
        raise ValueError(
            f"{where}.layer_range: all layers must be taken, [0, {count or 'number of layers'}],"
            f" but got {layers}"
        )


def _layers(base: str) -> int | None:
    """Return the base's number of layers; None if its config is not at hand."""
    try:
        config = json.loads((local_folder(base) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    found = [config[name] for name in names if isinstance(config.get(name), int)]
    return found[0] if found else None


def _named(models: list[_Model]) -> dict[str, _Model]:
    """Give models the names of their folders, or of their repositories."""
    found: dict[str, _Model] = {}
    for model in models:
        last = Path(model.location.partition("@")[0]).name
        name = re.sub(r"[^A-Za-z0-9_-]", "-", last)
        name = name if re.match(r"[A-Za-z]", name) and name != BASE else f"model-{name}"
        same = sum(1 for other in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other))
        found[f"{name}-{same + 1}" if same else name] = model
    return found


def _with_base(
    name: str, base: str | None, models: list[_Model], shared: Scopes, notes: Notes
) -> tuple[str | None, list[_Model]]:
    """Return base and models of a method of whole models, of which the base is one."""
    if base is None and name != "slerp":
        notes.note("base_model: there is none; the first model is, with its tokenizer and config")
        return models[0].location, models
    if base is not None and all(model.location != base for model in models):
        if name == "linear" and not any("weight" in scope for scope in shared):
            raise ValueError("base_model: linear takes it as one of models, which has no weight")
        models = [*models, _Model(base, {})]
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
    tokenizer = _mapping("tokenizer", values.get("tokenizer"))
    source = values.get("tokenizer_source") or tokenizer.get("source")
    if tokenizer and not source:
        source = "union"
    if source and source != "base" and _absolute(str(source)) != base:
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
