"""Origin of a checkpoint that was made of quantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cabs_search.common.formats import first_line

ORIGIN = "gguf.json"
"""File beside weights that were dequantized: the name of the file they were in, and their types."""


def file_of(folder: Path) -> str | None:
    """Return the name of the GGUF file that a checkpoint was made of; None for any other."""
    path = folder / ORIGIN
    return str(_read(path)["file"]) if path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    """Return what ``origin_note`` says. Raises ValueError if the file holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"file": str(found["file"]), "types": [*found["types"]]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {first_line(error)}") from error


def origin_note(who: str, folder: Path) -> str | None:
    """Return a sentence on the quantized weights that a checkpoint was made of; None for any other.

    Args:
        who: the model, as the sentence begins.
        folder: the checkpoint's.

    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    found = _read(path)
    types = ", ".join(map(str, found["types"]))
    return f"{who} was quantized: its weights are those of {found['file']} ({types}), as float32"
