"""Model card of a merge: what it was made of, how, what it scored, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote

import torch
import yaml

from cabs_search.checkpoints.origin import file_of
from cabs_search.checkpoints.vocabulary import COMMON_ROWS
from cabs_search.merging.family import Family
from cabs_search.merging.recipe import BASE, MOST_SHOWN, Recipe, arrows


def model_card(
    family: Family, recipe: Recipe, heads: Iterable[str], facts: Iterable[str], dtype: torch.dtype
) -> str:
    """Return the card in Markdown, with the fields that the hub reads.

    Args:
        family: the base and its experts.
        recipe: the recipe.
        heads: folders under ``heads/``.
        facts: lines on the model's scores.
        dtype: of the weights.

    """
    base, experts = family.base, family.experts
    lines = [
        *("---", _hub_fields(family), "---", ""),
        *("# Merged model", "", f"`{recipe}`", ""),
        f"- base: `{name_of(base.folder)}` (content {base.fingerprint})",
    ]
    lines += [
        f"- expert {name}: `{name_of(expert.folder)}` (content {family.fingerprints[name]}),"
        f" {_lambdas(recipe, name)}"
        for name, expert in experts.items()
    ]
    lines += [f"- {note}" for note in family.notes]
    lines += ["", *facts, "", *_listed_heads(heads)]
    lines += _command(family, dtype) if recipe.method.mask.calibration == "none" else []
    return "\n".join([*lines, "Made by cabs-search.", ""])


def _hub_fields(family: Family) -> str:
    """Return the card's first lines; models that are on no hub cannot be named there."""
    folders = [family.base.folder, *(expert.folder for expert in family.experts.values())]
    ids = [name for name in map(hub_id, folders) if name]
    fields = {"library_name": "transformers", "tags": ["merge", "cabs"]}
    if ids:
        fields |= {"base_model": ids, "base_model_relation": "merge"}
    return yaml.safe_dump(fields, sort_keys=False).rstrip()


def _command(family: Family, dtype: torch.dtype) -> list[str]:
    """Return the lines that say how to make the model again."""
    base = quote(name_of(family.base.folder))
    parts = ["cabs-search merge --recipe recipe.json", f"--base {base}"]
    parts += [f"--expert {name}={quote(name_of(e.folder))}" for name, e in family.experts.items()]
    parts += [f"--vocabulary {COMMON_ROWS}"] if family.alignment.common_rows else []
    models = {BASE: family.base, **family.experts}
    parts += [f"--pickled {name}" for name, model in models.items() if model.is_pickled]
    parts += [f"--dtype {str(dtype).removeprefix('torch.')}", "--to PATH"]
    return ["The same tensors again:", "", "```", " \\\n  ".join(parts), "```", ""]


def _lambdas(recipe: Recipe, expert: str) -> str:
    """Write λ of one expert in words; of many the range, as recipe.json has them all."""
    if recipe.layers:
        text = arrows(recipe.anchors_of(expert))
        return f"λ = {text} from the first to the last of {recipe.layers} layers"
    own = [(key.group, value) for key, value in recipe.lambdas if key.expert == expert]
    if len(own) > MOST_SHOWN:
        values = [value for _, value in own]
        return f"{len(own)} λ from {min(values):.3g} to {max(values):.3g}, see recipe.json"
    return ", ".join(f"λ of {group} = {v:g}" if group else f"λ = {v:g}" for group, v in own)


def hub_id(folder: Path) -> str | None:
    """Return the hub id of a checkpoint that came from the hub."""
    in_hub_cache = [part for part in folder.parts if part.startswith("models--")]
    return in_hub_cache[-1].removeprefix("models--").replace("--", "/") if in_hub_cache else None


def hub_revision(folder: Path) -> str | None:
    """Return the commit of a checkpoint that came from the hub."""
    parts = folder.parts
    return parts[parts.index("snapshots") + 1] if hub_id(folder) and "snapshots" in parts else None


def name_of(folder: Path) -> str:
    """Return a checkpoint's name for people: its hub id, or that of its folder or GGUF file."""
    return hub_id(folder) or file_of(folder) or folder.name


def location_of(folder: Path) -> str:
    """Return a checkpoint's location as a spec or a recipe has it: its hub id, or its folder."""
    name, revision = hub_id(folder), hub_revision(folder)
    return f"{name}@{revision}" if name and revision else str(folder)


def _listed_heads(heads: Iterable[str]) -> list[str]:
    lines = [f"- `heads/{name}`" for name in heads]
    return ["Heads:", "", *lines, ""] if lines else []
