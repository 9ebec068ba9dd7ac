"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cabs_search.common.files import whole_folder
from cabs_search.quickstart.folders import make_once


def test_a_folder_that_is_made_meanwhile_stays_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with whole_folder(folder) as slow:
        (slow / "x").write_text("slow")
        with whole_folder(folder) as fast:
            (fast / "x").write_text("fast")
        before = folder.stat().st_ino
    assert folder.stat().st_ino == before, "others may have it open"
    assert (folder / "x").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("")
    with pytest.raises(OSError, match="made"), whole_folder(tmp_path / "made") as work:
        (work / "x").write_text("x")


def test_a_folder_made_with_other_settings_is_made_again(tmp_path: Path) -> None:
    made = []
    for settings in ("1", "1", "2"):
        make_once(
            tmp_path / "made",
            settings,
            lambda folder, s=settings: made.append((folder / s).write_text("")),
        )
    assert len(made) == 2
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["2", "quickstart.json"]
