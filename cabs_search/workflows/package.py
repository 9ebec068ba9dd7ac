"""A spec with the files that it names, as a folder that travels to a cluster."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cabs_search.spec.load import find_spec_file, load_plain, parse
from cabs_search.spec.locations import HUB_ID

SPEC = "spec.yaml"
DATA = "data"
"""Folder of the files that tasks read."""
TRAVELLING = ("csv", "json", "parquet", "include")
"""Sources of a task's items that are files or folders; they are small enough to travel."""
MOST_BYTES = 200 << 20
"""Bytes that may travel: Ray refuses a working directory of 500 MiB."""


def package(spec: str | Path, to: Path, shared: Sequence[Path] = ()) -> Path:
    """Copy a spec and its data into a folder, with the locations that a cluster's node needs.

    Args:
        spec: a YAML file, or the name of one that ships.
        to: an empty folder.
        shared: folders that every node has at the same path.

    Returns:
        The spec's file in the folder.

    Raises:
        ValueError: the file is no spec, a file that it names is not there or too large, or a model
            lies where the cluster cannot see it.

    """
    file = find_spec_file(spec)
    values = load_plain(spec)
    parse(values, str(spec), locations=False)
    places = list(_models(values))
    hidden = [
        f"{field}: {path}"
        for field, text in places
        if (path := _local(text, file.parent)) and not _is_in(path, shared)
    ]
    if hidden:
        raise ValueError(
            f"{spec}: models must lie where every node of the cluster finds them (a hub id, or a"
            f" folder below --shared), but not {', '.join(hidden)}"
        )
    values = dict(values) | _absolute_models(values, file.parent)
    values["tasks"] = {
        name: _with_data(str(spec), name, task, file.parent, to, shared)
        for name, task in values["tasks"].items()
    }
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise ValueError(
            f"{spec}: files that travel must have {MOST_BYTES >> 20} MiB at most, but have"
            f" {size >> 20}; put them below a folder of --shared"
        )
    packed = to / SPEC
    packed.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")
    return packed


def _models(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the field and the location of base and experts."""
    yield "base", values["base"]
    for name, text in values["experts"].items():
        yield f"experts.{name}", text


def _local(text: str, folder: Path) -> Path | None:
    """Return the path of a location that is one; None for hub ids, packages and the cache."""
    path = folder / Path(text).expanduser()
    if text.startswith(("cache:", "package:")) or (
        not path.exists() and re.fullmatch(HUB_ID, text) and not text.startswith((".", "~"))
    ):
        return None
    return path.resolve()


def _is_in(path: Path, shared: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder.resolve()) for folder in shared)


def _absolute_models(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    def at(text: str) -> str:
        return str(_local(text, folder) or text)

    experts = {name: at(text) for name, text in values["experts"].items()}
    return {"base": at(values["base"]), "experts": experts}


def _with_data(
    spec: str, name: str, task: Mapping[str, Any], folder: Path, to: Path, shared: Sequence[Path]
) -> dict[str, Any]:
    """Copy what a task reads, unless it is shared, and name the copy."""
    source = dict(task["dataset"])
    for kind in TRAVELLING:
        path = _local(source[kind], folder) if source.get(kind) else None
        if path is None:
            continue
        if not path.exists():
            raise ValueError(f"{spec}: tasks.{name}.dataset.{kind}: {source[kind]}: no such file")
        if _is_in(path, shared):
            source[kind] = str(path)
            continue
        copy = to / DATA / name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
        source[kind] = str(copy.relative_to(to))
    return dict(task) | {"dataset": source}
