"""SIGTERM, with which schedulers end a program, treated as an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the work; what is recorded stays, and the same command goes on."""


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM interrupt the work as SIGINT does, but end it with ``Terminated``.

    Other threads than the main one cannot handle signals: there nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def interrupt(*_: Any) -> None:
        nonlocal received
        received = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        if received:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def kept_handler() -> Iterator[None]:
    """Put the handler of SIGTERM back that the work replaces, as Ray does when it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
