"""Files and folders that appear whole or not at all, SQLite settings, data that ships with us."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

SQLITE_SECONDS = 60.0
"""Longest wait of a connection for another one's transaction."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file replaces ``path`` if nothing is raised."""
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which it becomes if nothing is raised.

    A folder that another process has made meanwhile stays: it is the same one. Whoever makes a
    folder anew removes the old one first.

    Raises:
        OSError: a file is in the way, or the disk does not take it.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        made = Path(work) / "made"
        made.mkdir()
        yield made
        try:
            made.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def write_whole(path: Path, text: str) -> Path:
    """Write a text file that appears whole or not at all, and return its path."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def connect(path: Path) -> sqlite3.Connection:
    """Open a SQLite database, and make it if there is none."""
    return sqlite3.connect(path, timeout=SQLITE_SECONDS)


def use_write_ahead_log(path: Path) -> None:
    """Set a SQLite database to write-ahead logging for good: one wait for the disk a commit."""
    with closing(connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")


def shipped_folder(name: str) -> Path:
    """Return a data folder that ships: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
