"""SIGTERM as an interrupt."""

from __future__ import annotations

import signal

import pytest

from cabs_search.common.signals import Terminated, kept_handler, terminated_as_interrupted


@pytest.mark.parametrize("sigint", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_ends_the_work_also_where_sigint_is_ignored(sigint: signal.Handlers) -> None:
    before = signal.getsignal(signal.SIGTERM)
    own = signal.signal(signal.SIGINT, sigint)
    try:
        with pytest.raises(Terminated), terminated_as_interrupted(), terminated_as_interrupted():
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it goes on")
    finally:
        signal.signal(signal.SIGINT, own)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, terminated_as_interrupted():
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Terminated)


def test_a_handler_that_a_library_replaces_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with kept_handler():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
