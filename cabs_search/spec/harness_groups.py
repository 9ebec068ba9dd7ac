"""Members of groups and tags of lm-evaluation-harness, read from its index of YAML files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OWN_FIELDS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata", "version")
"""Fields of a group that change nothing in its members."""


def members_of(field: str, name: str, index: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the tasks in a group or under a tag, each once.

    Args:
        field: start of errors, such as ``tasks.mmlu.dataset.harness``.
        name: the group's or the tag's.
        index: the harness's entries by name.

    Raises:
        KeyError: the index has no such name.
        ValueError: the group changes settings of its members.

    """
    return tuple(dict.fromkeys(_members(field, name, index)))


def _members(field: str, name: str, index: Mapping[str, Any]) -> Iterator[str]:
    entry = index[name]
    match entry.kind.name:
        case "GROUP":
            yield from _of_group(field, name, entry.cfg, index)
        case "TAG":
            yield from sorted(entry.tags)
        case _:
            yield name


def _of_group(
    field: str, name: str, config: Mapping[str, Any], index: Mapping[str, Any]
) -> Iterator[str]:
    changed = sorted(config.keys() - set(OWN_FIELDS))
    for member in config["task"]:
        if isinstance(member, str):
            yield from _members(field, member, index)
        elif "group" in member and member["group"] not in index:  # defined in its place
            yield from _of_group(field, name, member, index)
        else:
            changed += sorted(member.keys() - {"task", "group"})
            yield from _members(field, member.get("task") or member["group"], index)
    if changed:
        raise ValueError(
            f"{field}: a group must leave its members as they are, but {name} sets {changed[0]} of"
            " some; name them one by one"
        )
