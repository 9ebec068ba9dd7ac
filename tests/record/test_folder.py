"""A study's folder: one driver at a time, and what it says of a comparison and of versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cabs_search.record.comparison_file import (
    axes_of,
    check_folder,
    is_comparison,
    stored_comparison,
    write_comparison,
)
from cabs_search.record.folder import StudyFolder, StudyId, only_driver, write_spec
from cabs_search.record.versions_file import joined_versions, record_versions, recorded_versions
from cabs_search.spec.load import load, parse
from tests.conftest import pico_values


def test_one_driver_holds_a_folder(tmp_path: Path) -> None:
    folder, message = tmp_path / "new" / "study", "another cabs-search is at work here"
    with only_driver(folder) as is_new:
        assert is_new
        with pytest.raises(RuntimeError, match=message), only_driver(folder):
            pass
    with only_driver(folder) as is_new:
        assert not is_new


def test_a_study_id_names_its_record_and_its_value() -> None:
    assert str(StudyId("r")) == "r"
    assert str(StudyId("r", "cabs 2:8")) == "r/cabs 2:8"


def test_the_spec_in_a_folder_is_the_spec(pico: Path, tmp_path: Path) -> None:
    spec = parse(pico_values(pico))
    write_spec(spec, tmp_path)
    assert load(StudyFolder(tmp_path).spec) == spec


def test_a_comparison_goes_on_with_its_axes_and_its_space(pico: Path, tmp_path: Path) -> None:
    values = pico_values(pico)
    spec = parse(values)
    assert not is_comparison(tmp_path)
    check_folder(tmp_path, spec.space, ["order"])
    write_comparison(tmp_path, spec, ["order"], {"a": "why"}, ["note"])
    assert is_comparison(tmp_path)
    assert axes_of(tmp_path) == ["order"]
    assert stored_comparison(tmp_path)["failures"] == {"a": "why"}
    check_folder(tmp_path, spec.space, ["order"])
    for over in (["nm"], None):
        with pytest.raises(ValueError, match="holds a comparison over order"):
            check_folder(tmp_path, spec.space, over)
    with pytest.raises(ValueError, match=r"space.gamma: .*not given.*but got 0.02"):
        check_folder(tmp_path, spec.space.replace(gamma=(0.02,)), ["order"])
    values["space"]["nm"] = ["4:8"]
    with pytest.raises(ValueError, match=r"space.nm: must stay as it was .* \(2:8, 8:32\)"):
        check_folder(tmp_path, parse(values).space, ["order"])


def test_a_study_is_no_comparison(pico: Path, tmp_path: Path) -> None:
    StudyFolder(tmp_path).study_database.touch()
    space = parse(pico_values(pico)).space
    check_folder(tmp_path, space, None)
    with pytest.raises(ValueError, match="holds a study, not a comparison"):
        check_folder(tmp_path, space, ["order"])


def test_versions_are_kept_once_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("1", "1", "2", "1"):
        now = {"Python": "3", "torch": number}
        monkeypatch.setattr("cabs_search.record.versions_file.versions", lambda now=now: now)
        record_versions(tmp_path)
    recorded = recorded_versions(tmp_path)
    assert [entry["torch"] for entry in recorded] == ["1", "2", "1"]
    assert joined_versions(recorded) == {"Python": "3", "torch": "1, then 2"}


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda f: f.versions.write_text("{"), recorded_versions),
        (lambda f: f.versions.write_text("[1]"), recorded_versions),
        (lambda f: f.comparison.write_text("a: ["), stored_comparison),
        (lambda f: f.comparison.write_text("over: []"), stored_comparison),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, write: Callable[[StudyFolder], object], read: Callable[[Path], object]
) -> None:
    write(StudyFolder(tmp_path))
    with pytest.raises(ValueError, match=str(tmp_path)):
        read(tmp_path)
