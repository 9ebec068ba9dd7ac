"""A recipe as mergekit's YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cabs_search.checkpoints.vocabulary import SAME
from cabs_search.merging.masks.rules import settings
from cabs_search.merging.masks.settings import value_for
from cabs_search.merging.recipe import BASE, Recipe
from cabs_search.spec.locations import local_folder
from cabs_search.spec.mergekit.methods import (
    OF_MODELS,
    OF_ONE,
    PLAIN,
    REMARKS,
    SUMMED,
    Notes,
    note_pruning,
)
from cabs_search.spec.mergekit.parameters import written
from cabs_search.spec.mergekit.passthrough import write_passthrough
from cabs_search.spec.recipe_file import RecipeFile


def write_mergekit(asked: RecipeFile, notes: Notes) -> dict[str, Any]:
    """Return the values of mergekit's file; ``notes`` receives what could not be carried over.

    Raises:
        ValueError: the file names no models, mergekit has no such method, or it cannot divide
            tensors as the recipe does.

    """
    recipe = asked.recipe
    if not (asked.base and asked.experts):
        raise ValueError("base: base and experts must be named")
    base = _path(asked.base)
    at = {expert: _path(asked.experts[expert]) for expert in recipe.experts}
    if recipe.stack:
        named = {name: _model(base, path) for name, path in {BASE: base, **at}.items()}
        return write_passthrough(asked, named, notes) | _ending(asked, notes)
    first = next((e for e, path in at.items() if path == base), recipe.experts[0])
    name, shared, per_expert = _method(recipe, first, notes)
    if recipe.cancels:
        notes.lose("lambda: those that sum up to 0 leave the base's tensors here")
    models = []
    for expert in recipe.experts:
        model = _model(base, at[expert])
        own = per_expert.get(expert, {})
        models.append({"model": model} | ({"parameters": own} if own else {}))
    values: dict[str, Any] = {"merge_method": name}
    if name not in OF_MODELS or base in (model["model"] for model in models):
        values["base_model"] = base
    else:
        notes.note(f"base: {name} has none; mergekit takes tokenizer and config of the first model")
        if name == "slerp":
            values["base_model"] = models[0]["model"]
    values["models"] = models
    if shared:
        values["parameters"] = shared
    values |= _ending(asked, notes)
    if name in REMARKS:
        notes.note(f"method: {REMARKS[name]}")
    return values


def _ending(asked: RecipeFile, notes: Notes) -> dict[str, Any]:
    """Return the fields of all methods; note what they cannot say."""
    values = {"dtype": "float32"}
    if asked.dtype not in (None, "float32"):
        values["out_dtype"] = asked.dtype
    elif asked.dtype is None:
        notes.note("dtype: mergekit writes float32, where a merge here has the base's dtype")
    if asked.vocabulary != SAME:
        notes.lose(f"vocabulary: mergekit has no {asked.vocabulary}")
    if asked.heads:
        notes.note("heads: mergekit writes none")
    return values


def _path(text: str) -> str:
    """Return a location as mergekit has it: a path or a hub id."""
    return str(local_folder(text)) if text.startswith(("cache:", "package:")) else text


def _model(base: str, expert: str) -> Any:
    is_adapter = (Path(expert) / "adapter_config.json").is_file()
    odd = [text for text in (base, expert) if "+" in text or (text[:1] == "/" and "@" in text)]
    if odd:
        found = {"model": {"path": base if is_adapter else expert}}
        return found | ({"lora": {"path": expert}} if is_adapter else {})
    return f"{base}+{expert}" if is_adapter else expert


Parameters = tuple[str, dict[str, Any], Mapping[str, dict[str, Any]]]
"""A method's name, parameters of all models, and of each."""


def _method(recipe: Recipe, first: str, notes: Notes) -> Parameters:
    """Return the method; ``first`` is the expert from which a slerp begins."""
    combine, mask = recipe.method.combine.name, recipe.method.mask.name
    if recipe.method.name in ("linear", "nuslerp"):
        shared = {"normalize": True} if combine == "linear" else {"nuslerp_flatten": True}
        return combine, shared, {e: {"weight": _lambda_of(recipe, e)} for e in recipe.experts}
    if recipe.method.name == "slerp":
        return "slerp", {"t": _shares(recipe, first)}, {}
    if recipe.method.name == "multi-slerp":
        return _multislerp(recipe, notes)
    plain = next((name for name, (ours, _) in PLAIN.items() if ours == recipe.method.name), None)
    if plain:
        return _plain(plain, recipe, notes)
    elects = combine in ("ties", "ties-sum")
    pruned_by = "dare" if mask == "random" else mask
    for name, kind in SUMMED.items():
        if kind.mask == pruned_by and kind.elects == elects and (elects or combine == "sum"):
            return _summed(name, recipe, notes)
    near = "; it trims each tensor, as ties-magnitude does" if recipe.method.name == "ties" else ""
    if recipe.method.mask.calibration != "none":
        near = ", and a file has no calibration items, which it needs"
    raise ValueError(f"method: mergekit has no {recipe.method.name}{near}")


def _lambda_of(recipe: Recipe, expert: str) -> Any:
    """Return an expert's λ as mergekit's value, filters or gradient."""
    own = {key.group: value for key, value in recipe.lambdas if key.expert == expert}
    return _written(recipe, own)


def _written(recipe: Recipe, values: Mapping[str, float]) -> Any:
    """Return values of groups, layers or anchors as mergekit's value, filters or gradient."""
    if recipe.layers and len(set(values.values())) > 1:
        return list(values.values())
    return written(recipe.groups, values)


def _shares(recipe: Recipe, first: str) -> Any:
    """Return how far mergekit goes from the first of two experts to the other."""
    own = recipe.by_part.items()
    return _written(
        recipe, {part: round(1 - at[first] / (sum(at.values()) or 1), 9) for part, at in own}
    )


def _multislerp(recipe: Recipe, notes: Notes) -> Parameters:
    """Return λ as weights if they sum up to their number, else divided by it."""
    count = len(recipe.experts)
    if count == 1 and any(value != 1 for _, value in recipe.lambdas):
        notes.lose("lambda: multislerp takes a single model as it is, so that it must be 1")
    normalize = all(
        math.isclose(sum(own.values()), count, abs_tol=1e-6) for own in recipe.by_part.values()
    )
    divisor = 1 if normalize else count
    weights = {}
    for expert in recipe.experts:
        values = {part: own[expert] / divisor for part, own in recipe.by_part.items()}
        weights[expert] = {"weight": _written(recipe, values)}
    return "multislerp", {"normalize_weights": normalize}, weights


def _plain(name: str, recipe: Recipe, notes: Notes) -> Parameters:
    if name == "karcher":
        if any(len(set(own.values())) > 1 for own in recipe.by_part.values()):
            notes.lose("lambda: karcher weighs all models alike, so that all must be equal")
    elif any(value != 1 for _, value in recipe.lambdas):
        notes.lose(f"lambda: {name} has none, so that all must be 1")
    mask = recipe.method.mask
    shared = {}
    for theirs, ours in PLAIN[name][1].items():
        value = getattr(mask, ours)
        if len({value_for(value, expert) for expert in recipe.experts}) > 1:
            notes.lose(f"{ours}: {name} has one for all models")
        shared[theirs] = value_for(value, recipe.experts[0])
    if name == "sce":
        note_pruning(mask.name, [shared["select_topk"]], notes)
    if name in OF_ONE and len(recipe.experts) > 1:
        raise ValueError(f"experts: {name} takes one, but got {len(recipe.experts)}")
    return name, shared, {}


def _summed(name: str, recipe: Recipe, notes: Notes) -> Parameters:
    kind, mask = SUMMED[name], recipe.method.mask
    shared: dict[str, Any] = {}
    per_expert: dict[str, dict[str, Any]] = {}
    for expert in recipe.experts:
        own: dict[str, Any] = {"weight": 1.0 if kind.elects else _lambda_of(recipe, expert)}
        for key in ("density", "gamma", "epsilon"):
            if key in settings(mask):
                own[key] = value_for(getattr(mask, key), expert)
        if "epsilon" in own and not 0 < own["density"] - own["epsilon"] < 1 - 2 * own["epsilon"]:
            notes.lose("epsilon: mergekit takes none that leads density ± epsilon out of (0, 1)")
        per_expert[expert] = own
    if kind.elects:
        lambdas = [_lambda_of(recipe, expert) for expert in recipe.experts]
        if any(value != lambdas[0] for value in lambdas):
            notes.lose("lambda: weights of mergekit have a vote, so that all λ must be equal")
        shared["lambda"] = lambdas[0]
        shared["normalize"] = recipe.method.combine.name == "ties"
    if "density" in settings(mask):
        shared["rescale"] = mask.name in ("dare", "della")
        note_pruning(mask.name, [own["density"] for own in per_expert.values()], notes)
    return name, shared, per_expert
