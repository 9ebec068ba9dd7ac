"""Models and vectors on their way to a node, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cabs_search.cluster import travel
from cabs_search.cluster.travel import Carrier, Shelf, Source
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from tests.conftest import EXPERTS


class Handle:
    """A shelf as a handle of Ray's, whose calls are counted."""

    def __init__(self, shelf: Shelf) -> None:
        self.calls: list[str] = []
        self._shelf = shelf

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> Any:
            self.calls.append(name)
            return getattr(self._shelf, name)(*given)

        return SimpleNamespace(remote=call)


@pytest.fixture
def handle(pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A head with models and a cache, asked from a node with a cache of its own."""
    monkeypatch.setattr(travel.ray, "get", lambda value: value)
    here = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(travel.ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(travel, "CHUNK_BYTES", 1000)
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(tmp_path / "node"))
    return Handle(Shelf([str(pico / name) for name in ("base", *EXPERTS)], tmp_path / "head"))


def carrier(handle: Handle, tmp_path: Path, node: str = "head") -> Carrier:
    return Carrier(Source(shelf=handle, node=node), tmp_path / "head")


def test_a_model_travels_once_a_node(
    handle: Handle, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: str(pico / name) for name in ("base", *EXPERTS)}
    assert carrier(handle, tmp_path).models(folders) == folders, "what is here does not travel"
    # a folder of the same name whose files are others, or in part missing
    monkeypatch.setattr(Shelf, "sizes", lambda *_: {"config.json": 1})
    left = tmp_path / "node" / "travelled"
    copies = carrier(handle, tmp_path).models(folders)
    reads = handle.calls.count("read")
    assert carrier(handle, tmp_path).models(folders) == copies
    assert handle.calls.count("read") == reads
    assert all(Path(copy).parent == left for copy in copies.values())
    here = Family.open(copies.pop("base"), copies)
    monkeypatch.undo()
    there = Family.open(folders.pop("base"), folders)
    assert here.base.fingerprint == there.base.fingerprint
    assert here.fingerprints == there.fingerprints


def test_an_entry_travels_if_it_is_whole(handle: Handle, pico: Path, tmp_path: Path) -> None:
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    method = make_method("ties", EXPERTS, density=0.5)
    head = VectorCache(tmp_path / "head").ensure(family, method)
    good = head["animal"].read_bytes()
    head["animal"].write_bytes(good[:-5])
    mine = carrier(handle, tmp_path)
    node = VectorCache(mine.cache, mine.entry)
    paths = node.ensure(family, method)
    assert all(path.is_relative_to(tmp_path / "node") for path in paths.values())
    assert paths["animal"].read_bytes() == good, "the one that was damaged there was built here"
    assert paths["mood"].read_bytes() == head["mood"].read_bytes()
    handle.calls.clear()
    paths["mood"].write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        node.ensure(family, method)
    assert "read" in handle.calls
    assert paths["mood"].read_bytes() == head["mood"].read_bytes()
    assert not list((tmp_path / "node").rglob("*.part"))


def test_statistics_travel_into_the_nodes_cache(handle: Handle, tmp_path: Path, pico: Path) -> None:
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    method = make_method("ties", EXPERTS, density=0.5)
    path = VectorCache(tmp_path / "head").ensure(family, method)["mood"]
    own = carrier(handle, tmp_path).statistics(path)
    assert own == tmp_path / "node" / path.relative_to(tmp_path / "head")
    assert own.read_bytes() == path.read_bytes()


def test_the_head_itself_and_other_files(
    handle: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(tmp_path / "head"))
    carrier(handle, tmp_path, node="node").entry(tmp_path / "head" / "vectors-v2" / "x")
    assert handle.calls == [], "it asks nobody"
    with pytest.raises(ValueError, match="is no file of this search"):
        handle._shelf.read(f"{tmp_path}/head/../../../etc/hosts", 0)
