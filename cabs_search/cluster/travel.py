"""Files that travel from the driver's node to nodes that lack them, once a node, by Ray.

An actor on the driver's node, the shelf, gives out models' files and entries of the vector cache
in chunks, which Ray's object store carries. A node keeps what it got in its own cache: a model's
folder under the hash of its files, an entry under its own name. Workers of a node wait for the one
that fetches.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from filelock import FileLock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cabs_search.checkpoints.writer import checksum_holds
from cabs_search.common.formats import digest
from cabs_search.spec.locations import files_of

CHUNK_BYTES = 32 << 20
"""Bytes in Ray's object store at a time, for each node that fetches."""
MODELS = "travelled"
"""Folder of the cache for models that came from the driver's node."""


class File(NamedTuple):
    """A file of a model's folder."""

    name: str
    size: int
    checksum: int


class Shelf:
    """Gives out files of its node; an actor."""

    def __init__(self, models: list[str], cache: Path) -> None:
        self._roots = [*map(Path, models), cache]
        self._listed: dict[str, list[File]] = {}

    def files(self, model: str) -> list[File]:
        """List a model's files with their checksums, which are taken once."""
        if model not in self._listed:
            self._listed[model] = [
                File(path.name, path.stat().st_size, _checksum(path))
                for path in files_of(Path(model))
            ]
        return self._listed[model]

    def sizes(self, model: str) -> dict[str, int]:
        """Return the sizes of a model's files by name."""
        return {path.name: path.stat().st_size for path in files_of(Path(model))}

    def size(self, path: str) -> int | None:
        """Return the size of a file; None if there is no such file."""
        file = self._own(path)
        return file.stat().st_size if file.is_file() else None

    def read(self, path: str, offset: int) -> bytes:
        """Return a chunk of a file of this search."""
        with self._own(path).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)

    def _own(self, path: str) -> Path:
        # Files of the hub's cache are links out of their folder: these are not followed here.
        found = Path(os.path.normpath(path))
        if not any(found.is_relative_to(os.path.normpath(root)) for root in self._roots):
            raise ValueError(f"{path}: is no file of this search")
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The node from which files travel."""

    shelf: Any
    """Handle of its ``Shelf``."""
    node: str
    """Ray's id of it."""

    @classmethod
    def here(cls, models: list[str], cache: Path) -> Source:
        """Start the shelf on this node."""
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        actor: Any = ray.remote(num_cpus=0)(Shelf)
        shelf = actor.options(scheduling_strategy=here).remote(models, cache)
        return cls(shelf=shelf, node=node)


class Carrier:
    """Gets what a worker's node lacks from the source.

    Args:
        source: where files are; None: all files are on every node.
        source_cache: the vector cache's folder there, and here unless the node's environment has
            ``CABS_SEARCH_CACHE``.

    """

    def __init__(self, source: Source | None, source_cache: Path) -> None:
        own = os.environ.get("CABS_SEARCH_CACHE") if source else None
        self._source_cache, self.cache = source_cache, Path(own) if own else source_cache
        is_home = source is not None and ray.get_runtime_context().get_node_id() == source.node
        has_all = is_home and self.cache == source_cache
        self._shelf = None if source is None or has_all else source.shelf

    def model(self, folder: str) -> str:
        """Return the folder of a model on this node: the same if it is here, else a copy's.

        A folder counts as here if its files have the names and sizes of the source's; that weights
        are the same, whoever loads them must check.
        """
        if self._shelf is None:
            return folder
        sizes: dict[str, int] = ray.get(self._shelf.sizes.remote(folder))
        here = {name: Path(folder) / name for name in sizes}
        if all(f.is_file() and f.stat().st_size == sizes[name] for name, f in here.items()):
            return folder
        files: list[File] = ray.get(self._shelf.files.remote(folder))
        copy = self.cache / MODELS / digest(json.dumps(files), 16)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.with_suffix(".lock")):
            if not copy.is_dir():
                partial = copy.with_suffix(".part")
                shutil.rmtree(partial, ignore_errors=True)  # of a worker that was killed
                partial.mkdir()
                for name, size, checksum in files:
                    self._fetch(f"{folder}/{name}", size, partial / name)
                    if _checksum(partial / name) != checksum:
                        raise ValueError(f"{folder}/{name}: changed while it travelled")
                partial.rename(copy)
        return str(copy)

    def models(self, folders: Mapping[str, str]) -> dict[str, str]:
        """Return folders by name as ``model`` does."""
        return {name: self.model(folder) for name, folder in folders.items()}

    def entry(self, path: Path) -> None:
        """Fetch a file of this node's cache from the source's, if that has it whole."""
        if self._shelf is None:
            return
        source = str(self._source_cache / path.relative_to(self.cache))
        size = ray.get(self._shelf.size.remote(source))
        if size is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if checksum_holds(path):  # another worker was first
                return
            partial = path.with_suffix(".part")
            self._fetch(source, size, partial)
            if checksum_holds(partial):
                partial.replace(path)
            partial.unlink(missing_ok=True)

    def statistics(self, path: Path) -> Path:
        """Return the path on this node of a calibration file of the source's cache."""
        own = self.cache / path.relative_to(self._source_cache)
        if not own.is_file():
            self.entry(own)
        return own

    def _fetch(self, source: str, size: int, to: Path) -> None:
        assert self._shelf is not None
        with to.open("wb") as file:
            for offset in range(0, size, CHUNK_BYTES):
                file.write(ray.get(self._shelf.read.remote(source, offset)))


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
