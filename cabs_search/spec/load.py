"""A spec read from its YAML file, checked as a whole before anything runs.

Errors name file, field, rule and value in one line.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cabs_search.common.files import shipped_folder
from cabs_search.spec.locations import UnreachableError, as_path, local_folder, locate
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task

MOST_BYTES = 1 << 20
"""Size of a spec's file, at most."""
MOST_VALUES = 20_000
"""Values in a spec, at most, those of aliases counted wherever they stand."""
MOST_ERROR = 1_000
"""Characters of an error, at most."""


def load(path: str | Path, *, locations: bool = True, data: bool = True) -> Spec:
    """Read a spec and make its locations absolute.

    Args:
        path: a YAML file, or the name of one that ships in ``search_spaces/``.
        locations: whether models and data must be there; a report needs neither.
        data: whether data must be there; an export needs models alone.

    Raises:
        UnreachableError: the hub does not give a hub id.
        ValueError: the file is no spec, or models or data are not there.

    """
    file = find_spec_file(path)
    values = _read(file, path)
    return parse(values, str(path), file.parent, locations=locations, data=data)


def load_reachable(path: str | Path) -> tuple[Spec, dict[str, str]]:
    """Read a spec and make absolute the locations that can be reached now.

    Returns:
        The spec, in which hub ids that the hub does not give stay as they are; and the reason by
        field of each of these.

    Raises:
        ValueError: the file is no spec, or a folder or file that it names is not there.

    """
    file = find_spec_file(path)
    values, unreachable = _read(file, path), dict[str, str]()
    spec = parse(values, str(path), locations=False)
    return _located(spec, values, str(path), file.parent, unreachable), unreachable


def parse(
    values: Any,
    source: str = "spec",
    relative_to: Path | None = None,
    *,
    locations: bool = True,
    data: bool = True,
) -> Spec:
    """Make a spec from plain values.

    Args:
        values: the content of a YAML file.
        source: the name of the file in errors.
        relative_to: start of relative locations; None: the working directory.
        locations, data: as in ``load``.

    Raises:
        ValueError: as in ``load``.

    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: a spec must be a mapping, but got {type(values).__name__}")
    if isinstance(values.get("space"), Mapping) and "more" in values["space"]:
        raise ValueError(f"{source}: space.more: no such field")
    try:
        spec = TypeAdapter(Spec).validate_python(dict(values))
    except ValidationError as error:
        raise ValueError(f"{source}: {one_line(error)}") from None
    if not locations:
        return spec
    return _located(spec, values, source, relative_to or Path(), has_data=data)


def load_plain(path: str | Path, what: str = "spec") -> dict[str, Any]:
    """Read a file as plain values, which ``parse`` checks; ``what``: its name in errors.

    Raises:
        ValueError: it cannot be read, or is no mapping.

    """
    values = _read(find_spec_file(path), path, what)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a {what} must be a mapping, but got {type(values).__name__}")
    return values


def dump_plain(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML that ``load_plain`` reads as they were."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def find_spec_file(path: str | Path) -> Path:
    """Return the file itself, or the one of that name that ships."""
    given = Path(path)
    if given.is_file():
        return given
    shipped = shipped_folder("search_spaces") / given.with_suffix(".yaml").name
    if len(given.parts) == 1 and shipped.is_file():
        return shipped
    raise ValueError(f"{path}: no such file")


def _read(file: Path, path: str | Path, what: str = "spec") -> Any:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"a {what} must have {MOST_BYTES >> 20} MiB at most")
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError(f"{path}: cannot be read: it is nested too deeply") from None
    except (
        *(OSError, yaml.YAMLError),
        *(AttributeError, LookupError, OverflowError, TypeError, ValueError),  # of odd tags
    ) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    _check_size(path, values, what)
    return values


def _check_size(path: str | Path, values: Any, what: str) -> None:
    """Raise ValueError if a file holds too much once its aliases are written in full."""
    left, count = [values], 0
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            left += value
        count += 1
        if count + len(left) > MOST_VALUES:
            raise ValueError(
                f"{path}: a {what} must hold {MOST_VALUES:,} values at most, with aliases in full"
            )


def _located(
    spec: Spec,
    values: Mapping[str, Any],
    source: str,
    folder: Path,
    unreachable: dict[str, str] | None = None,
    *,
    has_data: bool = True,
) -> Spec:
    """Make locations absolute, and let tasks of lm-evaluation-harness say what they are.

    Args:
        spec: the spec.
        values: the content of its YAML file.
        source: the name of the file in errors.
        folder: start of relative locations.
        unreachable: receives what cannot be reached now, by field; None: that is an error.
        has_data: whether data must be there.

    """

    def at(field: str, text: str) -> str:
        try:
            return str(locate(text, folder))
        except ValueError as error:
            if unreachable is None or not isinstance(error, UnreachableError):
                raise type(error)(f"{source}: {field}: {error}") from None
            unreachable[field] = str(error)
            return text

    def with_data(name: str, task: Task) -> Task:
        where = f"{source}: tasks.{name}"
        task = _with_data(task, where, folder)
        try:
            return _described(task, values["tasks"][name], where) if task.dataset.harness else task
        except UnreachableError:
            if unreachable is None:
                raise
            return task  # its items cannot be read either, which says why

    return replace(
        spec,
        base=at("base", spec.base),
        experts={name: at(f"experts.{name}", text) for name, text in spec.experts.items()},
        tasks={name: with_data(name, task) for name, task in spec.tasks.items()}
        if has_data
        else spec.tasks,
    )


def _with_data(task: Task, where: str, folder: Path) -> Task:
    """Make the path of a task's data file, or of its folder of YAML files, absolute."""
    if task.dataset.include:
        try:
            found = local_folder(task.dataset.include, folder)
        except ValueError as error:
            raise ValueError(f"{where}.dataset.include: {error}") from None
        return replace(task, dataset=replace(task.dataset, include=str(found)))
    for kind in ("csv", "json", "parquet"):
        if text := getattr(task.dataset, kind):
            try:
                path = (folder / as_path(text)).resolve()
            except ValueError as error:
                raise ValueError(f"{where}.dataset.{kind}: {error}") from None
            if not path.is_file():
                raise ValueError(f"{where}.dataset.{kind}: {text}: no such file")
            located: dict[str, Any] = {kind: str(path)}
            return replace(task, dataset=replace(task.dataset, **located))
    return task


def _described(task: Task, given: Mapping[str, Any], where: str) -> Task:
    """Return a task of lm-evaluation-harness with what it is there, such as its kind and metric.

    Args:
        task: the task, with absolute paths.
        given: its fields in the spec; if they have all of these, the harness is not asked.
        where: start of errors.

    Raises:
        UnreachableError: lm-evaluation-harness is not installed.
        ValueError: it has no such task.

    """
    fields = {key: value for key, value in given.items() if value is not None}
    fields["dataset"] = task.dataset
    needed = {"kind", "metric"} | ({"stop", "max_new_tokens"} if task.kind.generates else set())
    if not needed <= fields.keys():
        from cabs_search.spec.harness import describe

        found = describe(where, task.dataset)
        if fields.get("kind") in (None, found.kind.name):  # another is refused with its items
            fields = found.fields | fields
            if found.texts and task.dataset.filter is None:
                fields["dataset"] = replace(task.dataset, filter=found.texts.filters[0])
    try:
        return TypeAdapter(Task).validate_python(fields)
    except ValidationError as error:
        raise ValueError(f"{where}.{one_line(error)}") from None


def one_line(error: ValidationError) -> str:
    """Return the first error of a spec as ``field: rule and value``."""
    errors = error.errors()
    # Each branch of a union has errors: a validator's own message says most.
    said = [e for e in errors if e["type"] == "value_error"]
    other = [e for e in errors if e["type"] != "literal_error"]
    # Rules of a task's other fields depend on its kind.
    of_kind = [e for e in errors if e["loc"][-1:] == ("kind",)]
    first = [*of_kind, *said, *other, *errors][0]
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        # A part with brackets is no field: pydantic adds it to name a branch of a union.
        elif not re.search(r"[(\[]|^constrained-", str(part)):
            where += f".{part}" if where else str(part)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        message = "no such field"
    elif first["type"] not in ("value_error", "missing", "missing_argument"):
        # Cut at any depth: written in full, a few aliases of aliases are gigabytes.
        message += f", but got {_SHORT.repr(first['input'])}"
    text = f"{where}: {message}" if where else message
    return text if len(text) <= MOST_ERROR else f"{text[:MOST_ERROR]}…"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 200, 200


class _Loader(yaml.SafeLoader):
    """YAML in which 3:32 is text (not 212, in base 60) and a repeated key is an error."""

    count = 0
    """Nodes so far."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        # Keys of a merge (<<) may be given again: that is what it is for.
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        line, seen = node.start_mark.line + 1, set()
        for key in own:
            name = self.construct_object(key, deep=deep)
            if not isinstance(name, (str, int, float, NoneType)):
                raise yaml.YAMLError(f"a field's name must be a text, line {line} and after")
            if name in seen:
                raise yaml.YAMLError(f"{name} stands twice, line {line} and after")
            seen.add(name)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Make the next node, unless there are too many: each takes a tenth of a millisecond."""
        self.count += 1
        if self.count > MOST_VALUES:
            raise yaml.YAMLError(f"it must hold {MOST_VALUES:,} values at most")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: Any) -> None:
        """Put merged mappings in, unless they are many: each may itself be merged from many."""
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        sources = [
            one for value in merged for one in (value.value if value.id == "sequence" else [value])
        ]
        count = 0
        for source in sources:
            if source.id == "mapping":
                self.flatten_mapping(source)
                count += len(source.value)
            if count > MOST_VALUES:
                raise yaml.YAMLError(f"merges hold more than {MOST_VALUES:,} values")
        super().flatten_mapping(node)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class _Dumper(yaml.SafeDumper):
    """YAML that ``_Loader`` and other readers read as it was: what either takes for no text is
    quoted.
    """


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
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, _number, list("-+.0123456789"))
