"""Outages and refusals of MLflow, told apart."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterator

import requests
from sqlalchemy.exc import InterfaceError, OperationalError

from cabs_search.common.formats import first_line
from cabs_search.common.redact import without_password

ARTIFACT_STORE_DOWN = (500,)
"""Statuses that mean the artifact store is unreachable: skip artifacts, do not retry."""
NO_ANSWER = (
    ConnectionError,
    TimeoutError,
    sqlite3.OperationalError,
    OperationalError,
    InterfaceError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


def cause(error: BaseException) -> str:
    """Return the first cause of an error in a few words, without secrets."""
    return without_password(first_line(list(_chain(error))[-1]))[:120]


def is_unanswered(error: BaseException, *, refusals: Collection[int] = ()) -> bool:
    """Tell an outage, after which the same request may succeed, from a refusal.

    Args:
        error: raised by a request.
        refusals: HTTP statuses that are a refusal here, whatever they mean elsewhere.

    """
    return any(
        isinstance(link, NO_ANSWER)
        or ((status := _status(link)) not in refusals and (status == 429 or status >= 500))
        for link in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    yield error
    deeper = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if deeper is not None:
        yield from _chain(deeper)


def _status(error: BaseException) -> int:
    """Return the HTTP status that a server answered; 0 if no server did."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, requests.HTTPError):
        return 0 if error.response is None else int(error.response.status_code)
    if not isinstance(error, MlflowException):
        return 0
    # A proxy's answer, which holds no error of the server's MLflow, is named in the message only.
    if (named := re.search(r"(?:error code|too many) (\d{3}) ", str(error))) is not None:
        return int(named[1])
    status = int(error.get_http_status_code())
    # The client's own errors have the status 500 as well.
    return status if isinstance(error, RestException) or status != 500 else 0
