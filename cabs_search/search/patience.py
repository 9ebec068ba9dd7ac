"""Calls to a study's database that are tried again while its server does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import optuna
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from cabs_search.common.formats import first_line
from cabs_search.common.redact import without_password

PATIENCE_SECONDS = 60.0
"""Time for which a database server may be away, as while it is started again."""
RETRY_SECONDS = 1.0
"""Pause before the next try."""
Result = TypeVar("Result")


class Patience:
    """Tries calls again for ``PATIENCE_SECONDS`` each; gives up for good after the first failure.

    Args:
        source: the database's address, without secrets.
        is_server: whether it is a server's: a file that cannot be written is not waited for.

    """

    def __init__(self, source: str, *, is_server: bool) -> None:
        self._source, self._is_server = source, is_server
        self._failure: str | None = None

    def __call__(self, act: Callable[[bool], Result]) -> Result:
        """Return what a call returns; it is told whether it was tried before, and may have worked.

        Raises:
            RuntimeError: the server does not answer.

        """
        end, is_again = time.monotonic() + PATIENCE_SECONDS, False
        while True:
            if self._failure:
                raise RuntimeError(self._failure)
            try:
                return act(is_again)
            except Exception as error:
                cause = outage(error)
                if cause is None:
                    raise
                if not self._is_server or time.monotonic() > end:
                    say = no_answer if self._is_server else not_written
                    self._failure = say(self._source, cause)
                    raise RuntimeError(self._failure) from error
            is_again = True
            time.sleep(RETRY_SECONDS)


def outage(error: BaseException) -> BaseException | None:
    """Return the driver's error if it means that the server did not answer; else None."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    if not isinstance(error, DBAPIError):
        return None
    is_away = isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated
    return (error.orig or error) if is_away else None


def no_answer(source: str, cause: BaseException) -> str:
    """Say that a database does not answer, and what may be done."""
    reason = without_password(first_line(cause))
    return (
        f"{source}: the study's database does not answer ({reason}); all scores are kept, and the"
        " same command goes on where it stopped"
    )


def not_written(source: str, cause: BaseException) -> str:
    """Say that a database in a file cannot be written."""
    return (
        f"{source}: cannot be written: {first_line(cause)}; once it can, the same command goes on"
    )
