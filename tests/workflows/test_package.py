"""A spec and its data as a folder for a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cabs_search.spec.load import load
from cabs_search.workflows import package as packing
from cabs_search.workflows.package import package
from tests.conftest import EXPERTS, pico_values, write_spec


@pytest.fixture
def values(pico: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a spec whose tasks read one shared file and others of the user's own."""
    values = pico_values(pico)
    for name in EXPERTS[1:]:
        source = Path(values["tasks"][name]["dataset"]["csv"])
        (tmp_path / f"{name}.csv").write_bytes(source.read_bytes())
        values["tasks"][name]["dataset"] = {"csv": f"{name}.csv"}  # relative to the spec
    return values


def test_data_travel_and_shared_folders_do_not(
    values: dict[str, Any], pico: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "my.yaml", values)
    to = tmp_path / "packed"
    to.mkdir()
    packed = load(package(spec, to, shared=[pico]))
    assert packed.base == str(pico / "base")
    files = {name: Path(str(packed.tasks[name].dataset.csv)) for name in EXPERTS}
    assert files[EXPERTS[0]].is_relative_to(pico)
    for name in EXPERTS[1:]:
        assert files[name].is_relative_to(to)
        assert files[name].read_bytes() == (tmp_path / f"{name}.csv").read_bytes()


def test_tasks_that_read_one_file_read_one_copy(
    values: dict[str, Any], pico: Path, tmp_path: Path
) -> None:
    """Else they would have other items than here, and no pass in common. Texts stay texts."""
    values["tasks"][EXPERTS[1]]["dataset"] = values["tasks"][EXPERTS[2]]["dataset"]
    values["tasks"][EXPERTS[1]]["label"] = "08"
    to = tmp_path / "packed"
    to.mkdir()
    spec = write_spec(tmp_path / "my.yaml", values)
    spec.write_text(spec.read_text().replace("label: 08", "label: '08'"))
    packed = load(package(spec, to, shared=[pico]))
    assert packed.tasks[EXPERTS[1]].dataset == packed.tasks[EXPERTS[2]].dataset
    assert packed.tasks[EXPERTS[1]].label == "08"


def test_models_that_no_node_sees_are_named(
    values: dict[str, Any], pico: Path, tmp_path: Path
) -> None:
    values["experts"][EXPERTS[0]] = "owner/on-the-hub"
    values["experts"][EXPERTS[1]] = "cache:made-there"
    spec = write_spec(tmp_path / "my.yaml", values)
    with pytest.raises(ValueError, match=r"my\.yaml: models must lie .* --shared") as raised:
        package(spec, tmp_path, shared=[pico / "base"])
    assert str(pico / EXPERTS[2]) in str(raised.value)
    assert "hub" not in str(raised.value).split("but not")[1]
    assert "made-there" not in str(raised.value)


def test_a_password_does_not_travel(values: dict[str, Any], pico: Path, tmp_path: Path) -> None:
    values["search"]["storage"] = "postgresql+psycopg://me:SECRET@host/study"
    spec = write_spec(tmp_path / "my.yaml", values)
    with pytest.raises(ValueError, match="storage: must have no user and no password") as raised:
        package(spec, tmp_path, shared=[pico])
    assert "SECRET" not in str(raised.value)


def test_data_that_are_missing_or_large_are_refused(
    values: dict[str, Any], pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(tmp_path / "my.yaml", values)
    to = tmp_path / "packed"
    to.mkdir()
    monkeypatch.setattr(packing, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="files that travel must have 0 MiB at most"):
        package(spec, to, shared=[pico])
    values["tasks"][EXPERTS[1]]["dataset"] = {"csv": f"data/{EXPERTS[1]}.csv"}  # no hub id
    spec = write_spec(tmp_path / "my.yaml", values)
    with pytest.raises(ValueError, match=rf"tasks\.{EXPERTS[1]}\.dataset\.csv: .* no such file"):
        package(spec, to, shared=[pico])
    with pytest.raises(ValueError, match=r"other\.yaml: .*no such field"):
        package(write_spec(tmp_path / "other.yaml", values | {"bases": 1}), to)
