"""Models that mergekit's YAML names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cabs_search.merging.recipe import BASE
from cabs_search.spec.locations import local_folder
from cabs_search.spec.recipe_file import located


@dataclass(frozen=True)
class Model:
    """A model of mergekit's file."""

    location: str
    parameters: Mapping[str, Any]
    """Its own parameters."""


def mapping(field: str, value: Any) -> Mapping[str, Any]:
    """Return a mapping, empty for None. Raises ValueError if it is something else."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{field}: a mapping is needed, but got {value!r:.100}")
    return value or {}


def location(field: str, given: Any, base: str | None) -> str:
    """Return the location of a model; of ``base+adapter`` the adapter's."""
    text = given
    if isinstance(given, Mapping):
        parts = [_path(given.get(key)) for key in ("model", "lora")]
        text = "+".join(part for part in parts if part)
    if not isinstance(text, str) or not text:
        raise ValueError(f"{field}: a model must be named, but got {given!r:.100}")
    whole, _, adapter = text.partition("+")
    if adapter and absolute(whole) != base:
        raise ValueError(f"{field}: an adapter must be one of base_model, but got {text}")
    return absolute(adapter or whole)


def _path(value: Any) -> str:
    if isinstance(value, Mapping):
        value = "@".join(str(value[key]) for key in ("path", "revision") if value.get(key))
    return str(value or "")


def absolute(text: str) -> str:
    """Return a location whose path begins where the command is run, as mergekit's do."""
    return located(text, Path())


def layers_of(base: str) -> int | None:
    """Return the base's number of layers; None if its config is not at hand."""
    try:
        config = json.loads((local_folder(base) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    found = [config[name] for name in names if isinstance(config.get(name), int)]
    return found[0] if found else None


def named(models: list[Model]) -> dict[str, Model]:
    """Give models the names of their folders, or of their repositories."""
    found: dict[str, Model] = {}
    for model in models:
        last = Path(model.location.partition("@")[0]).name
        name = re.sub(r"[^A-Za-z0-9_-]", "-", last)
        name = name if re.match(r"[A-Za-z]", name) and name != BASE else f"model-{name}"
        same = sum(1 for other in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other))
        found[f"{name}-{same + 1}" if same else name] = model
    return found
