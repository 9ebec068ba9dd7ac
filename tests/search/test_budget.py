"""Budget of items: how many more candidates it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from cabs_search.search.budget import Budget
from cabs_search.spec.load import parse
from tests.conftest import pico_values


@pytest.mark.parametrize(
    ("owed", "stopped", "whole"),
    [
        (0, 2 + 170, 21),  # 1,356 items and two whole candidates; a part of one counts
        (1348, 3, 3),
        (1356, 2, 2),  # what is left is for what is recommended
        (1400, 2, 2),
        (1440, 1, 1),
        (1500, 0, 0),
    ],
)
def test_candidates_left(pico: Path, owed: int, stopped: int, whole: int) -> None:
    """Of 72 items each, but for those that stop after 8, in 1,500 items."""
    limits = parse(pico_values(pico, sampler="surface", trials=None, items=1500)).search
    assert Budget(limits, 72, 4, stops_at=8).left(0, owed) == stopped
    assert Budget(limits, 72, 4).left(0, owed) == whole
