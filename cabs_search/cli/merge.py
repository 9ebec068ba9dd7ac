"""The command ``merge``: a recipe from options or a file, and the model that it gives."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cabs_search.cli.commands import print_export
from cabs_search.cli.convert import read_for_merge

if TYPE_CHECKING:
    from cabs_search.spec.recipe_file import RecipeFile


def merge(options: argparse.Namespace) -> None:
    """Merge experts by one recipe, and write the model."""
    import torch
    from tqdm import tqdm

    from cabs_search.merging.chunks import keep_memory
    from cabs_search.merging.family import Family
    from cabs_search.serving.export import export, trunk_weights
    from cabs_search.spec.fields import NAME_PATTERN
    from cabs_search.spec.locations import locate

    keep_memory()
    experts = _mapping("--expert", options.expert)
    for name in experts:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(
                f"--expert: a name must be letters, digits, _ and -, a letter first, but got {name}"
            )
    asked = _from_file(options, experts) if options.recipe else _from_options(options, experts)
    recipe = asked.recipe
    if recipe.method.mask.calibration != "none":
        where = "--recipe" if options.recipe else "--method"
        raise ValueError(
            f"{where}: {recipe.method.name} needs calibration items, which only a study has; use"
            " run, compare or export"
        )
    family = Family.open(
        locate(asked.base or ""),
        {name: locate(path) for name, path in asked.experts.items()},
        asked.vocabulary,
        options.pickled,
    )
    for name, expert in (asked.heads or {}).items():
        if not family.alignment.heads.get(expert, True):
            raise ValueError(f"{options.recipe}: heads.{name}: expert {expert} has no head")
    with tqdm(
        total=trunk_weights(family, recipe.stack),
        unit="weight",
        unit_scale=True,
        desc="merge",
        file=sys.stderr,
    ) as bar:
        to = export(
            family,
            recipe,
            options.to,
            heads=asked.heads,
            dtype=getattr(torch, asked.dtype) if asked.dtype else None,
            progress=bar.update,
        )
    print_export(options, recipe, to)


def _from_options(options: argparse.Namespace, experts: Mapping[str, str]) -> RecipeFile:
    """Return what the options say."""
    from cabs_search.checkpoints.vocabulary import SAME
    from cabs_search.merging.masks.rules import SETTINGS
    from cabs_search.merging.method import make_method
    from cabs_search.merging.recipe import make_recipe
    from cabs_search.spec.recipe_file import RecipeFile

    if not (options.base and experts):
        raise ValueError(
            f"{'--expert' if options.base else '--base'}: it must be given, or a --recipe that"
            " names the models"
        )
    settings = {name: getattr(options, name) for name in SETTINGS}
    method = options.method or "cabs"
    lambdas = _mapping("--lambda", options.lambdas)
    unknown = [name for name in lambdas if name not in experts]
    if unknown:
        raise ValueError(
            f"--lambda: an expert must be named ({', '.join(experts)}), but got {unknown[0]}"
        )
    numbers = dict.fromkeys(experts, 1.0) | {k: _number(v) for k, v in lambdas.items()}
    made = make_method(
        method, tuple(experts), overlap_merge=options.overlap_merge or "sum", **settings
    )
    _check_settings(method, options.overlap_merge, settings)
    return RecipeFile(
        recipe=make_recipe(made, numbers),
        base=options.base,
        experts=experts,
        vocabulary=options.vocabulary or SAME,
        dtype=options.dtype,
    )


def _from_file(options: argparse.Namespace, experts: Mapping[str, str]) -> RecipeFile:
    """Return what the file of ``--recipe`` says, with the models of the options before its own."""
    from cabs_search.merging.masks.rules import SETTINGS

    given = {name: getattr(options, name) for name in SETTINGS}
    given |= {"method": options.method, "overlap-merge": options.overlap_merge}
    given["lambda"] = options.lambdas or None
    others = [name for name, value in given.items() if value is not None]
    if others:
        raise ValueError(f"--recipe: it has every setting, so --{others[0]} must not be given")
    asked = read_for_merge(options.recipe)
    models = {**asked.experts, **experts}
    names = asked.recipe.experts
    if set(models) != set(names):
        raise ValueError(
            f"--expert: the experts of {options.recipe} must be given ({', '.join(names)}), but got"
            f" {', '.join(models) or 'none'}"
        )
    if not (options.base or asked.base):
        raise ValueError(f"--base: it must be given, as {options.recipe} names none")
    return replace(
        asked,
        base=options.base or asked.base,
        experts={name: models[name] for name in names},
        vocabulary=options.vocabulary or asked.vocabulary,
        dtype=options.dtype or asked.dtype,
    )


def _check_settings(
    method: str, overlap_merge: str | None, given: Mapping[str, str | None]
) -> None:
    """Raise ValueError if an option is given that the method does not use."""
    from cabs_search.merging.masks.rules import settings
    from cabs_search.merging.method import rule_of

    own = set(settings(rule_of(method)))
    used = own | ({"overlap-merge"} if "overlap" in own else set())
    names = {name for name, value in given.items() if value is not None}
    names |= {"overlap-merge"} if overlap_merge not in (None, "sum") else set()
    if unused := sorted(names - used):
        known = ", ".join(f"--{name}" for name in sorted(used)) or "no settings"
        raise ValueError(f"--{unused[0]}: {method} does not use it; it has {known}")


def _mapping(option: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Return NAME=VALUE options as a mapping; raise ValueError if a name is given twice."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{option}: {name} is given twice")
    return dict(pairs)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--lambda: a number is needed, but got {text}") from error
