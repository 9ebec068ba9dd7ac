"""Files that appear whole or not at all, SQLite settings, data files that ship with the package."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

SQLITE_SECONDS = 60.0
"""How long a connection waits for another one's transaction."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it replaces ``path`` if no error is raised."""
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> Path:
    """Write a text file that appears whole or not at all; its path."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def connect(path: Path) -> sqlite3.Connection:
    """Open a SQLite database, made where there is none."""
    return sqlite3.connect(path, timeout=SQLITE_SECONDS)


def use_write_ahead_log(path: Path) -> None:
    """Set a SQLite database to write ahead, which it stays: a transaction waits for the disk once."""
    with closing(connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")


def shipped_folder(name: str) -> Path:
    """Find the data folder ``name`` that ships: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
