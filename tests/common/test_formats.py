"""Texts of numbers."""

from __future__ import annotations

import pytest

from cabs_search.common.formats import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (156.4, "2 min 36 s"),
        (599.9, "10 min"),
        (3599, "1 h 0 min"),
        (3 * 3600 + 300, "3 h 5 min"),
    ],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert duration(seconds) == text
