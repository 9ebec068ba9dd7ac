"""News of a search."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cabs_search.record.folder import StudyFolder
from cabs_search.record.progress_file import (
    SILENT_SECONDS,
    Share,
    Status,
    note_beginning,
    note_status,
    parse_status,
    read_status,
)
from cabs_search.reporting.terminal.status import status_text


def news(**changes: object) -> Status:
    values = {
        "name": "my",
        "state": "at work",
        "phase": "search",
        "candidates": 31,
        "spent": (Share(unit="item", spent=3450, limit=7500),),
        "best": 0.8123,
        "items": 3450,
        "items_per_second": 42.0,
        "seconds_left": 96.0,
        "noted": time.time(),
    }
    return Status(**(values | changes))  # type: ignore[arg-type]


def test_news_are_read_as_written(tmp_path: Path) -> None:
    note_status(StudyFolder(tmp_path).progress, news())
    found = read_status(tmp_path)
    assert found == news(noted=found.noted)
    text = status_text(found)
    for part in ("3,450 of 7,500 (46%)", "31", "0.8123", "42.0 a second", "1 min 36 s"):
        assert part in text


def test_a_driver_that_is_silent_was_killed() -> None:
    """Time is counted where the note is read; another machine's clock may differ."""
    old = news(noted=time.time() - SILENT_SECONDS - 1)
    assert old.is_silent
    assert "goes on where it stopped" in status_text(old)
    assert not news(noted=old.noted, state="finished").is_silent
    elsewhere = parse_status(old.as_json() + "\na line of another program")
    assert elsewhere.is_silent


def test_a_note_of_a_later_time_is_old() -> None:
    """A driver at work notes the time that a clock has after it was set back, within seconds."""
    future = news(noted=time.time() + 3600)
    assert (future.is_silent, future.age) == (True, 0)
    assert not news(noted=time.time() + SILENT_SECONDS / 2).is_silent


def test_a_search_that_is_prepared_may_be_silent(tmp_path: Path) -> None:
    note_beginning(tmp_path, "my")
    found = read_status(tmp_path)
    assert found.phase == "preparing"
    assert not news(phase="preparing", noted=time.time() - 2 * SILENT_SECONDS).is_silent
    assert "preparing" in status_text(found)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"spent": [], "more": 1}', '{"spent": [1]}'])
def test_a_damaged_file_says_so(tmp_path: Path, text: str) -> None:
    StudyFolder(tmp_path).progress.write_text(text)
    with pytest.raises(ValueError, match=r"progress\.json: cannot be read: .*may be deleted"):
        read_status(tmp_path)
