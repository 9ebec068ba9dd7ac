"""JSON files of a checkpoint, such as its ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cabs_search.common.formats import first_line

MOST_JSON_BYTES = 48 << 20
"""Size of a JSON file, at most; what it holds takes up to twenty times as much memory."""
MOST_SHOWN = 500
"""Characters of a wrong value that an error shows, at most."""
CONFIG_TYPES: Mapping[str, tuple[type, str]] = {
    "architectures": (list, "a list"),
    "model_type": (str, "a text"),
    **dict.fromkeys(
        ("rope_parameters", "rope_scaling", "id2label", "label2id"), (dict, "a mapping")
    ),
}
"""Types of fields of ``config.json`` that are read, and how errors name them."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
"""Fields of a config that have the number of layers."""
SIZES = ("max_position_embeddings", "n_positions", "num_labels", "vocab_size")
"""Fields that have other sizes."""
MOST_SIZE = 1 << 25
"""Largest of a config's sizes, of which models and configs make tables before weights are read."""


def read_config(path: Path, tensors: int) -> dict[str, Any]:
    """Read the ``config.json`` of a checkpoint of so many tensors.

    Raises:
        ValueError: it cannot be read, or a field has another type or is too large for any model.

    """
    config = read_json(path)
    for field, (wanted, name) in CONFIG_TYPES.items():
        value = config.get(field)
        if value is not None and not isinstance(value, wanted):
            raise ValueError(f"{path}: {field}: must be {name}, but got {str(value)[:MOST_SHOWN]}")
    for field, most in {
        **dict.fromkeys(LAYERS, tensors),
        **dict.fromkeys(SIZES, MOST_SIZE),
    }.items():
        value = config.get(field)
        if value is not None and not (isinstance(value, int) and 0 <= value <= most):
            raise ValueError(
                f"{path}: {field}: must be a whole number up to {most}, but got"
                f" {str(value)[:MOST_SHOWN]}"
            )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise ValueError if it holds none, or is too large."""
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"it must have {MOST_JSON_BYTES >> 20} MiB at most")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {first_line(error)}") from error
    except RecursionError:
        raise ValueError(f"{path}: cannot be read: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, but got {type(content).__name__}")
    return content
