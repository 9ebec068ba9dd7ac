"""Errors of records that are damaged, or of another study."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from cabs_search.common.formats import first_line

PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_READONLY")
"""Starts of names of SQLite's errors that say nothing of what the file holds."""
WRONG_VALUES = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)
Method = TypeVar("Method", bound=Callable[..., Any])


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Tell whether an error of SQLite means that the file holds something else than a record."""
    if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
        return False
    return not getattr(error, "sqlite_errorname", "").startswith(PASSING)


def reads_record(method: Method) -> Method:
    """Make wrong values that a method finds in the file ``self.path`` one line that names it."""

    @wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except WRONG_VALUES as error:
            if str(error).startswith(str(self.path)):
                raise
            raise ValueError(
                f"{self.path}: is damaged, or of another study than spec.yaml:"
                f" {type(error).__name__}: {first_line(error)}"
            ) from error

    return cast("Method", wrapped)


def amount_of(stored: Any) -> float:
    """Return an amount that was spent. Raises ValueError if it is no finite number."""
    if not math.isfinite(amount := float(stored)):
        raise ValueError(f"an amount must be finite, but got {stored}")
    return amount
