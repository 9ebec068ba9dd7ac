"""A spec with the files that it names, as a folder that travels to a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cabs_search.common.formats import digest
from cabs_search.common.redact import without_password
from cabs_search.spec.load import dump_plain, find_spec_file, load_plain, parse
from cabs_search.spec.locations import path_of

SPEC = "spec.yaml"
DATA = "data"
"""Folder of the files that tasks read."""
TRAVELLING = ("csv", "json", "parquet", "include")
"""Sources of a task's items that are files or folders; they are small enough to travel."""
IGNORED = (".git", ".gitignore", ".rayignore")
"""Files that stay: by the last two, Ray would leave out others."""
MOST_BYTES = 200 << 20
"""Bytes that may travel: Ray refuses a working directory of 500 MiB."""


def package(spec: str | Path, to: Path, shared: Sequence[Path] = ()) -> Path:
    """Copy a spec and its data into a folder, with the locations that a cluster's head node needs.

    Args:
        spec: a YAML file, or the name of one that ships.
        to: an empty folder.
        shared: folders that the cluster's head node has at the same path.

    Returns:
        The spec's file in the folder.

    Raises:
        ValueError: the file is no spec, a file that it names is not there or too large, or a model
            lies where the cluster cannot see it.

    """
    file = find_spec_file(spec)
    values = load_plain(spec)
    storage = parse(values, str(spec), locations=False).search.storage
    if storage and storage != without_password(storage):
        raise ValueError(
            f"{spec}: search.storage: must have no user and no password, which would lie on the"
            " cluster; set CABS_SEARCH_STORAGE on the head node instead"
        )
    hidden = [
        f"{field}: {path}"
        for field, text in _models(values)
        if (path := _local(text, file.parent)) and not _is_in(path, shared)
    ]
    if hidden:
        raise ValueError(
            f"{spec}: models must lie where the cluster's head node finds them (a hub id, or a"
            f" folder below --shared), but not {', '.join(hidden)}"
        )
    values |= _absolute_models(values, file.parent)
    travelling: dict[Path, Path] = {}
    values["tasks"] = {
        name: _with_data(f"{spec}: tasks.{name}", task, file.parent, shared, travelling)
        for name, task in values["tasks"].items()
    }
    size = sum(map(bytes_of, travelling))
    if size > MOST_BYTES:
        raise ValueError(
            f"{spec}: files that travel must have {MOST_BYTES >> 20} MiB at most, but have"
            f" {size >> 20}; put them below a folder of --shared"
        )
    for source, inside in travelling.items():
        copy = to / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*IGNORED))
        else:
            shutil.copyfile(source, copy)
    packed = to / SPEC
    packed.write_text(dump_plain(values), "utf-8")
    return packed


def data_files(spec: str | Path) -> list[Path]:
    """Return the files and folders that ``package`` copies, if no folder is shared.

    Raises:
        ValueError: as of ``package``.

    """
    file, values = find_spec_file(spec), load_plain(spec)
    travelling: dict[Path, Path] = {}
    for name, task in values["tasks"].items():
        _with_data(f"{spec}: tasks.{name}", task, file.parent, (), travelling)
    return list(travelling)


def _models(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the field and the location of base and experts."""
    yield "base", values["base"]
    for name, text in values["experts"].items():
        yield f"experts.{name}", text


def _local(text: str, folder: Path) -> Path | None:
    """Return the path of a model that lies at one; None for hub ids, packages and the cache."""
    path = path_of(text, folder)
    return path and path.resolve()


def _is_in(path: Path, shared: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder.resolve()) for folder in shared)


def _absolute_models(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    def at(text: str) -> str:
        return str(_local(text, folder) or text)

    experts = {name: at(text) for name, text in values["experts"].items()}
    return {"base": at(values["base"]), "experts": experts}


def bytes_of(source: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    files = source.rglob("*") if source.is_dir() else [source]
    return sum(path.stat().st_size for path in files if path.is_file())


def _with_data(
    where: str,
    task: Mapping[str, Any],
    folder: Path,
    shared: Sequence[Path],
    travelling: dict[Path, Path],
) -> dict[str, Any]:
    """Name the place of what a task reads, on the cluster.

    Args:
        where: start of errors.
        task: the task's fields.
        folder: start of relative paths.
        shared: as of ``package``.
        travelling: receives what is to be copied, and its place in the package: one for tasks that
            read the same.

    """
    source = dict(task["dataset"])
    for kind in TRAVELLING:
        text = source.get(kind)
        if not text or (kind == "include" and text.startswith(("cache:", "package:"))):
            continue
        path = (folder / Path(text).expanduser()).resolve()
        if not path.exists():
            raise ValueError(f"{where}.dataset.{kind}: {text}: no such file")
        if _is_in(path, shared):
            source[kind] = str(path)
            continue
        inside = Path(DATA) / digest(str(path))[:12] / path.name
        source[kind] = str(travelling.setdefault(path, inside))
    return dict(task) | {"dataset": source}
