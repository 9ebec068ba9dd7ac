"""What to search: one YAML file, checked as a whole before anything runs.

The classes here are the file's schema and, frozen, what the program works with. ``load`` reads a
file and makes every location absolute; its errors name file, field, rule and value in one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cabs_search.common.files import shipped_folder
from cabs_search.spec.locations import is_hub_id, locate
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task


def load(path: str | Path, *, locations: bool = True, download: bool = True) -> Spec:
    """Read a spec; locations come back absolute.

    Args:
        path: a YAML file, or the name of one that ships in ``search_spaces/``.
        locations: whether models and data must be there; a report needs neither.
        download: whether hub ids become folders, or stay as they are.

    Raises:
        UnreachableError: a hub id is needed that the hub does not give.
        ValueError: one line that names file, field, rule and value.

    """
    file = find_spec_file(path)
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    return parse(values, str(path), file.parent, locations=locations, download=download)


def parse(
    values: Any,
    source: str = "spec",
    relative_to: Path | None = None,
    *,
    locations: bool = True,
    download: bool = True,
) -> Spec:
    """A spec from plain values; ``source`` and ``relative_to`` as a file would give them."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: a spec must be a mapping, but got {type(values).__name__}")
    try:
        spec = TypeAdapter(Spec).validate_python(dict(values))
    except ValidationError as error:
        raise ValueError(f"{source}: {_one_line(error)}") from None
    try:
        return _located(spec, relative_to or Path(), download=download) if locations else spec
    except ValueError as error:
        raise type(error)(f"{source}: {error}") from None


def find_spec_file(path: str | Path) -> Path:
    """The file itself, or the one of that name among those that ship."""
    given = Path(path)
    if given.is_file():
        return given
    shipped = shipped_folder("search_spaces") / given.with_suffix(".yaml").name
    if len(given.parts) == 1 and shipped.is_file():
        return shipped
    raise ValueError(f"{path}: no such file")


def _located(spec: Spec, folder: Path, *, download: bool) -> Spec:
    def at(field: str, text: str) -> str:
        if not download and is_hub_id(text, folder):
            return text
        try:
            return str(locate(text, folder))
        except ValueError as error:
            raise type(error)(f"{field}: {error}") from None

    def data(name: str, task: Task) -> Task:
        for kind in ("csv", "json", "parquet"):
            if text := getattr(task.dataset, kind):
                path = (folder / Path(text).expanduser()).resolve()
                if not path.is_file():
                    raise ValueError(f"tasks.{name}.dataset.{kind}: {text}: no such file")
                return replace(task, dataset=replace(task.dataset, **{kind: str(path)}))
        return task

    return replace(
        spec,
        base=at("base", spec.base),
        experts={name: at(f"experts.{name}", text) for name, text in spec.experts.items()},
        tasks={name: data(name, task) for name, task in spec.tasks.items()},
    )


def _one_line(error: ValidationError) -> str:
    """The first error of a spec as ``field: rule and value``."""
    errors = error.errors()
    first = next(
        (e for e in errors if e["type"] == "value_error"), errors[0]
    )  # of a union the branch that says why
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif "(" not in str(part) and "[" not in str(
            part
        ):  # what pydantic adds to tell a union's branches apart
            where += f".{part}" if where else str(part)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        message = "no such field"
    elif first["type"] not in ("value_error", "missing", "missing_argument"):
        message += f", but got {first['input']!r}"
    return f"{where}: {message}" if where else message


class _Loader(yaml.SafeLoader):
    """YAML in which 3:32 is text (not 212 in base 60) and a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(
                    f"{key} stands twice, line {node.start_mark.line + 1} and after"
                )
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?[0-9]+$"),
    "tag:yaml.org,2002:float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _number in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _number, list("-+.0123456789"))
