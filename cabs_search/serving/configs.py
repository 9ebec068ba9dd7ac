"""Configs of merged models, where they differ from the base's or an expert's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cabs_search.checkpoints.json_files import LAYERS
from cabs_search.common.formats import first_line
from cabs_search.merging.stack import Stack, per_layer_fields
from cabs_search.tasks.tokenizer import pad_token_id


def set_layers(folder: Path, source: Path, stack: Stack) -> None:
    """Write a stack's number of layers, and what a config has for each of them, to the config.

    Args:
        folder: the model that is written.
        source: the expert's folder, for errors.
        stack: its layers.

    """
    loaded, values = _load_config(folder, source), json.loads((folder / "config.json").read_text())
    count = loaded.num_hidden_layers
    each = per_layer_fields(loaded.to_dict(), count)
    values |= {field: [getattr(loaded, field)[slot.layer] for slot in stack] for field in each}
    name = next((name for name in LAYERS if values.get(name) == count), LAYERS[0])
    (folder / "config.json").write_text(json.dumps(values | {name: len(stack)}, indent=2) + "\n")
    _load_config(folder, source)


def _load_config(folder: Path, source: Path) -> Any:
    """Load a model's config; ``source``: the expert's folder, for errors."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a config of somebody's can raise anything
        raise ValueError(f"{source}: config.json cannot be read: {first_line(error)}") from error


def set_pad_token(folder: Path, source: Path) -> None:
    """Add to a decoder's config the pad token of its items; it takes no batches without one.

    Args:
        folder: the model that is written.
        source: the expert's folder, for errors.

    """
    from transformers import AutoTokenizer

    config = _load_config(folder, source)
    if config.pad_token_id is None and any(folder.glob("tokenizer*")):
        values = json.loads((folder / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        values["pad_token_id"] = pad_token_id(config, tokenizer)
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
