"""Outages and refusals of MLflow, told apart."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterator

import requests

from cabs_search.common.formats import first_line
from cabs_search.common.redact import without_password

ARTIFACT_STORE_DOWN = (500,)
"""What a server answers that cannot reach its artifacts: of them, it is no outage that passes."""


def cause(error: BaseException) -> str:
    """What lies behind an error, in a few words."""
    return without_password(first_line(list(_chain(error))[-1]))[:120]


def is_unanswered(error: BaseException, *, refusals: Collection[int] = ()) -> bool:
    """Whether MLflow did not answer or could not, so that the same may go well later; if not, it
    refused.

    Args:
        error: what writing raised.
        refusals: HTTP statuses that are no sign of an outage here.

    """
    plain = (ConnectionError, TimeoutError, sqlite3.OperationalError)
    of_requests = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    found = list(_chain(error))
    statuses = {status for each in found if (status := _status(each)) is not None} - set(refusals)
    return any(isinstance(each, (*plain, *of_requests)) for each in found) or any(
        s == 429 or s >= 500 for s in statuses
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what lies behind it."""
    yield error
    while (
        deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    ) is not None:
        yield (error := deeper)


def _status(error: BaseException) -> int | None:
    """The HTTP status with which a server answered; None where no server did."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, requests.HTTPError):
        return None if error.response is None else int(error.response.status_code)
    if not isinstance(error, MlflowException):
        return None
    if (
        named := re.search(r"(?:error code|too many) (\d{3}) ", str(error))
    ) is not None:  # no error of the server's MLflow
        return int(named[1])
    status = int(error.get_http_status_code())
    return (
        status if isinstance(error, RestException) or status != 500 else None
    )  # which all else in the client has
