"""The file of a study's folder that says which versions of the packages searched there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cabs_search.common.files import write_whole
from cabs_search.common.formats import first_line
from cabs_search.common.versions import versions
from cabs_search.record.folder import StudyFolder


def record_versions(folder: Path) -> None:
    """Append the present versions to those on file, unless they are the last ones there."""
    known, now = recorded_versions(folder), versions()
    if known[-1:] != [now]:
        write_whole(StudyFolder(folder).versions, json.dumps([*known, now], indent=2) + "\n")


def recorded_versions(folder: Path) -> list[dict[str, str]]:
    """Return the versions on file, oldest first; none if there is no file.

    Raises:
        ValueError: the file is damaged.

    """
    path = StudyFolder(folder).versions
    if not path.is_file():
        return []
    try:
        entries = [dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        if not all(isinstance(text, str) for entry in entries for text in entry.values()):
            raise ValueError("each version must be a text")
        return entries
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: cannot be read: {first_line(error)}; it may be deleted"
        ) from error


def joined_versions(recorded: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Join the versions of each package in the order in which they searched."""
    names = dict.fromkeys(name for entry in recorded for name in entry)
    return {
        name: ", then ".join(dict.fromkeys(entry[name] for entry in recorded if name in entry))
        for name in names
    }
