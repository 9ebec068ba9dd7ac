"""Folders of the cache that are made once, whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

SETTINGS = "quickstart.json"
"""The file in a folder with everything that it depends on; one made with others is made again."""


def is_made(folder: Path, settings: str) -> bool:
    """Tell whether a folder was made with these settings."""
    file = folder / SETTINGS
    return file.is_file() and file.read_text() == settings


def make_once(folder: Path, settings: str, make_in: Callable[[Path], None]) -> None:
    """Have a folder made in a temporary one and moved to its place, unless it is there."""
    if is_made(folder, settings):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        made = Path(work) / "made"
        make_in(made)
        (made / SETTINGS).write_text(settings)
        shutil.rmtree(folder, ignore_errors=True)
        # Fails if another process has made the folder meanwhile: it is the same one.
        with contextlib.suppress(OSError):
            made.rename(folder)
