"""mergekit's YAML as a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cabs_search.merging.masks.settings import collapsed
from cabs_search.merging.recipe import BASE, LambdaKey, Recipe, make_method, make_recipe
from cabs_search.spec.load import load_plain
from cabs_search.spec.locations import local_folder
from cabs_search.spec.mergekit.methods import (
    EXTRA,
    FIXED,
    METHODS,
    PLAIN,
    REMARKS,
    SUMMED,
    Notes,
    Summed,
    note_pruning,
)
from cabs_search.spec.mergekit.parameters import Ladder, Scopes, ladder, number, regions
from cabs_search.spec.recipe_file import WHAT, RecipeFile, located, parse_recipe

KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
DTYPES = ("float32", "bfloat16", "float16")
CLOSE = 1e-6
"""Distance from 1 at which weights still sum to 1."""


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
    models = _models(values, base)
    if name == "linear":
        base, models = _of_linear(base, models, parameters, notes)
    if base is None:
        raise ValueError(f"base_model: {name} needs one here")
    experts = _named([m for m in models if name == "linear" or m.location != base])
    if not experts:
        raise ValueError("models: a model beside the base is needed")
    scopes = {e: (m.parameters, parameters) for e, m in experts.items()}
    if name in SUMMED:
        recipe = _summed(SUMMED[name], scopes, _layers(base), notes)
    elif name == "linear":
        recipe = _linear(scopes, _layers(base), notes)
    else:
        recipe = _plain(name, scopes, notes)
    _note_unused(name, models, parameters, notes)
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


def _models(values: Mapping[str, Any], base: str | None) -> list[_Model]:
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
        parameters = {**own, **parameters}
        found.append(_Model(_location(f"{where}.model", one.get("model"), base), parameters))
    return found


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


def _of_linear(
    base: str | None, models: list[_Model], parameters: Mapping[str, Any], notes: Notes
) -> tuple[str, list[_Model]]:
    """Return base and models of a weighted mean, in which mergekit counts the base."""
    if base is None:
        notes.note("base_model: there is none; the first model is, with its tokenizer and config")
        return models[0].location, models
    if all(model.location != base for model in models):
        if "weight" not in parameters:
            raise ValueError("base_model: linear takes it as one of models, which has no weight")
        models = [*models, _Model(base, {})]
    return base, models


def _recipe(
    method: Any, values: Mapping[str, Mapping[str, float]], groups: list[tuple[str, str]]
) -> Recipe:
    """Make a recipe from λ by expert and group."""
    if len(groups) == 1:
        return make_recipe(
            method, {LambdaKey(e): next(iter(v.values())) for e, v in values.items()}
        )
    keys = {LambdaKey(e, group): v[group] for e, v in values.items() for group, _ in groups}
    return make_recipe(method, keys, tuple(groups))


def _summed(kind: Summed, scopes: Mapping[str, Scopes], layers: int | None, notes: Notes) -> Recipe:
    shared = next(iter(scopes.values()))[1:]
    normalize = _flag("normalize", shared, kind.normalize)
    weights = {e: ladder("weight", own, None) for e, own in scopes.items()}
    factor = ladder("lambda", shared, 1.0)
    parts = regions([*weights.values(), factor], layers)
    values: dict[str, dict[str, float]] = {expert: {} for expert in scopes}
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
    return _recipe(method, values, [(part.name, part.pattern) for part in parts])


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


def _pruning(mask: str, scopes: Mapping[str, Scopes], notes: Notes) -> dict[str, Any]:
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


def _linear(scopes: Mapping[str, Scopes], layers: int | None, notes: Notes) -> Recipe:
    shared = next(iter(scopes.values()))[1:]
    weights = {e: ladder("weight", own, None) for e, own in scopes.items()}
    parts = regions(list(weights.values()), layers)
    values = {e: {part.name: part.value(w) for part in parts} for e, w in weights.items()}
    normalize = _flag("normalize", shared, True)
    for part in parts:
        total = sum(own[part.name] for own in values.values())
        if not normalize and abs(total - 1) > CLOSE:
            notes.lose(
                f"parameters.normalize: false needs weights that sum to 1, but got {total:g}"
            )
    method = make_method("linear" if normalize else "task-arithmetic", tuple(scopes))
    return _recipe(method, values, [(part.name, part.pattern) for part in parts])


def _plain(name: str, scopes: Mapping[str, Scopes], notes: Notes) -> Recipe:
    """Return the recipe of a method that has no λ."""
    ours, settings = PLAIN[name]
    shared = next(iter(scopes.values()))[1:]
    merged = shared[0]
    for key, value in FIXED.get(name, {}).items():
        if merged.get(key, value) != value:
            notes.lose(f"parameters.{key}: it is always {value} here, but got {merged[key]}")
    given: dict[str, Any] = {}
    if name == "sce":
        given["density"] = 1.0
    for key, setting in settings.items():
        if key in merged:
            given[setting] = _one(key, shared, 0.0, notes)
    if name == "multislerp":
        weights = {_one("weight", own, 1.0, notes) for own in scopes.values()}
        if len(weights) > 1:
            notes.lose("parameters.weight: all models must have one weight here")
    if name == "nearswap":
        if "t" not in merged:
            raise ValueError("parameters.t: a value is needed")
        number("t", given["limit"])
        if len(scopes) > 1:
            raise ValueError(f"models: nearswap takes one beside the base, but got {len(scopes)}")
    return make_recipe(make_method(ours, tuple(scopes), **given), dict.fromkeys(scopes, 1.0))


def _used(name: str) -> set[str]:
    """Return the parameters of a method that were read."""
    if name in SUMMED:
        kind = SUMMED[name]
        pruning = set() if kind.mask == "task-arithmetic" else {"density", "rescale"}
        return {"weight", "lambda", "normalize"} | pruning | set(EXTRA.get(kind.mask, ())[:1])
    if name == "linear":
        return {"weight", "normalize"}
    weight = {"weight"} if name == "multislerp" else set()
    return set(PLAIN[name][1]) | set(FIXED.get(name, {})) | weight


def _note_unused(
    name: str, models: list[_Model], parameters: Mapping[str, Any], notes: Notes
) -> None:
    for scope in (parameters, *(model.parameters for model in models)):
        for key in scope:
            if key == "int8_mask":
                notes.note("parameters.int8_mask: about memory; it changes no weight")
            elif key not in _used(name):
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
