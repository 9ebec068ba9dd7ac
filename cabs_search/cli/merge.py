"""The command ``merge``: a recipe from options or a file, and the model that it gives."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cabs_search.cli.commands import print_export

if TYPE_CHECKING:
    from cabs_search.merging.recipe import Recipe


def merge(options: argparse.Namespace) -> None:
    """Merge experts by one recipe, and write the model."""
    import torch
    from tqdm import tqdm

    from cabs_search.merging.chunks import keep_memory
    from cabs_search.merging.family import Family
    from cabs_search.serving.export import export
    from cabs_search.spec.fields import NAME_PATTERN
    from cabs_search.spec.locations import locate

    keep_memory()
    experts = _mapping("--expert", options.expert)
    for name in experts:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(
                f"--expert: a name must be letters, digits, _ and -, a letter first, but got {name}"
            )
    recipe = _recipe(options, tuple(experts))
    if recipe.method.mask.calibration != "none":
        where = "--recipe" if options.recipe else "--method"
        raise ValueError(
            f"{where}: {recipe.method.name} needs calibration items, which only a study has; use"
            " run, compare or export"
        )
    family = Family.open(
        locate(options.base),
        {name: locate(path) for name, path in experts.items()},
        options.vocabulary,
        options.pickled,
    )
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with tqdm(
        total=family.alignment.weights,
        unit="weight",
        unit_scale=True,
        desc="merge",
        file=sys.stderr,
    ) as bar:
        to = export(family, recipe, options.to, dtype=dtype, progress=bar.update)
    print_export(options, recipe, to)


def _recipe(options: argparse.Namespace, experts: tuple[str, ...]) -> Recipe:
    """Return the recipe of ``--recipe``, else of the options."""
    from cabs_search.merging.masks.rules import SETTINGS
    from cabs_search.merging.recipe import make_method, make_recipe

    settings = {name: getattr(options, name) for name in SETTINGS}
    if options.recipe:
        given = {**settings, "method": options.method, "overlap-merge": options.overlap_merge}
        given["lambda"] = options.lambdas or None
        others = [name for name, value in given.items() if value is not None]
        if others:
            raise ValueError(f"--recipe: it has every setting, so --{others[0]} must not be given")
        return _read_recipe(options.recipe, experts)
    method = options.method or "cabs"
    lambdas = _mapping("--lambda", options.lambdas)
    unknown = [name for name in lambdas if name not in experts]
    if unknown:
        raise ValueError(
            f"--lambda: an expert must be named ({', '.join(experts)}), but got {unknown[0]}"
        )
    numbers = dict.fromkeys(experts, 1.0) | {k: _number(v) for k, v in lambdas.items()}
    made = make_method(method, experts, overlap_merge=options.overlap_merge or "sum", **settings)
    _check_settings(method, options.overlap_merge, settings)
    return make_recipe(made, numbers)


def _read_recipe(path: Path, experts: Sequence[str]) -> Recipe:
    """Read a recipe that an export has written, for these experts."""
    from cabs_search.common.formats import first_line
    from cabs_search.merging.recipe import Recipe
    from cabs_search.record.damage import WRONG_VALUES

    try:
        recipe = Recipe.from_dict(json.loads(path.read_text()))
    except (*WRONG_VALUES, OSError) as error:
        raise ValueError(f"--recipe {path}: holds no recipe: {first_line(error)}") from error
    if set(recipe.experts) != set(experts):
        raise ValueError(
            f"--expert: the experts of {path} must be given ({', '.join(recipe.experts)}), but got"
            f" {', '.join(experts)}"
        )
    return recipe


def _check_settings(
    method: str, overlap_merge: str | None, given: Mapping[str, str | None]
) -> None:
    """Raise ValueError if an option is given that the method does not use."""
    from cabs_search.merging.masks.rules import settings
    from cabs_search.merging.recipe import rule_of

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
