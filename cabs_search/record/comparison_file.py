"""The file of a comparison's folder that holds what the record does not: axes and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cabs_search.common.files import write_whole
from cabs_search.record.folder import StudyFolder, values_to_keep
from cabs_search.spec.load import load_plain, parse
from cabs_search.spec.space import Space
from cabs_search.spec.study import Spec

FIELDS = (("spec", dict), ("over", list), ("failures", dict), ("notes", list))
"""Names and types of what is in the file."""


def is_comparison(folder: str | Path) -> bool:
    """Tell whether a folder holds a comparison."""
    return StudyFolder(Path(folder)).comparison.is_file()


def write_comparison(
    folder: Path, spec: Spec, over: Sequence[str], failures: Mapping[str, str], notes: Sequence[str]
) -> None:
    """Write a comparison's spec, its axes, and the reason of each row that failed."""
    plain = {"over": list(over), "failures": dict(failures), "notes": list(notes)}
    text = yaml.safe_dump(
        plain | {"spec": values_to_keep(spec)}, sort_keys=False, allow_unicode=True
    )
    write_whole(StudyFolder(folder).comparison, text)


def stored_comparison(folder: Path) -> dict[str, Any]:
    """Read the fields that ``write_comparison`` wrote.

    Raises:
        ValueError: the file is damaged.

    """
    path = StudyFolder(folder).comparison
    plain = load_plain(path)
    if any(not isinstance(plain.get(f), t) for f, t in FIELDS):
        raise ValueError(f"{path}: spec, over, failures and notes must be in it")
    return plain


def axes_of(folder: Path) -> list[str]:
    """Return the axes of a folder's comparison, as they were asked for."""
    return list(stored_comparison(folder)["over"])


def check_folder(folder: Path, space: Space, over: Sequence[str] | None) -> None:
    """Check that a folder is free for a study, or goes on with the same one.

    Args:
        folder: the output folder, which may not exist.
        space: the space to search.
        over: axes of a comparison; None: a single study.

    Raises:
        ValueError: the folder holds something else.

    """
    if is_comparison(folder):
        axes = axes_of(folder)
        if axes != (None if over is None else list(over)):
            raise ValueError(
                f"{folder}: holds a comparison over {' and '.join(axes)}; choose another --output"
            )
        _check_space(folder, space)
    elif over is not None and StudyFolder(folder).study_database.is_file():
        raise ValueError(f"{folder}: holds a study, not a comparison; choose another --output")


def _check_space(folder: Path, space: Space) -> None:
    source = str(StudyFolder(folder).comparison)
    spec = parse(stored_comparison(folder)["spec"], source, locations=False)
    before, now = spec.space.identity(), space.identity()
    for field in [*now, *(before.keys() - now.keys())]:
        if before.get(field) != now.get(field):
            raise ValueError(
                f"space.{field}: must stay as it was when the comparison in {folder} began"
                f" ({before.get(field, 'not given')}), but got {now.get(field, 'none')}; choose"
                " another --output"
            )
