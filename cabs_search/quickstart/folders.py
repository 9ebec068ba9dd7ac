"""Folders of the cache that are made once, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cabs_search.common.files import whole_folder

SETTINGS = "quickstart.json"
"""The file in a folder with everything that it depends on; one made with others is made again."""


def is_made(folder: Path, settings: str) -> bool:
    """Tell whether a folder was made with these settings."""
    file = folder / SETTINGS
    return file.is_file() and file.read_text() == settings


def make_once(folder: Path, settings: str, make_in: Callable[[Path], None]) -> None:
    """Have a folder made, whole or not at all, unless it is there."""
    if is_made(folder, settings):
        return
    with whole_folder(folder) as made:
        make_in(made)
        (made / SETTINGS).write_text(settings)
        if not is_made(folder, settings):  # made with others; not by another process meanwhile
            shutil.rmtree(folder, ignore_errors=True)
