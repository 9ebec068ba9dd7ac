"""The command ``convert``: a recipe as mergekit's YAML, or the other way."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from cabs_search.cli.commands import print_json

if TYPE_CHECKING:
    from pathlib import Path

    from cabs_search.spec.recipe_file import RecipeFile

MERGEKIT, RECIPE = "mergekit", "recipe"


def convert(options: argparse.Namespace) -> None:
    """Write a file in the other form, and say line by line what could not be carried over."""
    from cabs_search.common.files import write_whole
    from cabs_search.spec.load import dump_plain
    from cabs_search.spec.mergekit.read import read_any
    from cabs_search.spec.mergekit.write import write_mergekit

    asked, notes, from_mergekit = read_any(options.file)
    target = options.form or (RECIPE if from_mergekit else MERGEKIT)
    try:
        values = write_mergekit(asked, notes) if target == MERGEKIT else asked.as_dict()
    except ValueError as error:
        raise ValueError(f"{options.file}: {error}") from None
    for line in notes.lines:
        print(line, file=sys.stderr)
    if notes.losses and not options.lossy:
        raise ValueError(
            f"{options.file}: {len(notes.losses)} of its settings would be lost, which changes the"
            " merged weights; --lossy converts the rest"
        )
    if options.output:
        write_whole(options.output, dump_plain(values))
    if options.json:
        print_json({"form": target, "values": values, "lost": notes.losses, "notes": notes.notes})
    elif options.output:
        print(f"written to {options.output}")
    else:
        print(dump_plain(values), end="")


def read_for_merge(path: Path) -> RecipeFile:
    """Read a file to merge by. Raises ValueError if it is mergekit's and something is lost."""
    from cabs_search.spec.mergekit.read import read_any

    asked, notes, _ = read_any(path)
    for line in notes.lines:
        print(line, file=sys.stderr)
    if notes.losses:
        raise ValueError(f"--recipe {path}: {notes.losses[0]}; see {MERGEKIT} in `convert`")
    return asked
