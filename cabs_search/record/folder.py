"""A study's folder: its files, its lock, what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock, Timeout

from cabs_search.common.files import write_whole
from cabs_search.common.formats import first_line
from cabs_search.common.versions import versions
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a study's, or a comparison's, folder: the only place that names its files."""

    path: Path

    @property
    def spec(self) -> Path:
        """The spec as resolved."""
        return self.path / "spec.yaml"

    @property
    def study_database(self) -> Path:
        """Optuna's study, unless the spec names another database."""
        return self.path / "study.db"

    @property
    def outcomes(self) -> Path:
        """The folder of the record of scored items."""
        return self.path / "outcomes"

    @property
    def tracking_database(self) -> Path:
        """MLflow's runs, unless a server has them."""
        return self.path / "mlflow.db"

    @property
    def tracking_address(self) -> Path:
        """The address of the tracking server that has the runs, if one has."""
        return self.path / "tracking-uri.txt"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, unless a server has them."""
        return self.path / "artifacts"

    @property
    def page(self) -> Path:
        """The report as one page."""
        return self.path / "report.html"

    @property
    def versions(self) -> Path:
        """Versions of what searched here."""
        return self.path / "versions.json"

    @property
    def comparison(self) -> Path:
        """Axes, failures and notes of a comparison."""
        return self.path / "comparison.yaml"

    @property
    def lock(self) -> Path:
        """Held by the one driver at work."""
        return self.path / ".lock"


class StudyId(NamedTuple):
    """The name of a study: of its record and, in a comparison, of its value."""

    record: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.record}/{self.value}" if self.value else self.record


@contextmanager
def only_driver(folder: Path) -> Iterator[bool]:
    """Hold the folder, made where there is none (True); RuntimeError where another driver is at
    work.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(StudyFolder(folder).lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"{folder}: another cabs-search is at work here") from None
    with lock:
        yield is_new


def write_spec(spec: Spec, folder: Path) -> None:
    text = yaml.safe_dump(spec.as_dict(), sort_keys=False, allow_unicode=True)
    write_whole(StudyFolder(folder).spec, text)


def write_comparison(
    folder: Path, spec: Spec, over: Sequence[str], failures: Mapping[str, str], notes: Sequence[str]
) -> None:
    """Keep what a folder's record does not say: the axes, and which rows failed."""
    plain = {
        "over": list(over),
        "failures": dict(failures),
        "notes": list(notes),
        "spec": spec.as_dict(),
    }
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_whole(StudyFolder(folder).comparison, text)


def check_folder(folder: Path, spec: Spec, over: Sequence[str] | None) -> None:
    """Raises ValueError where a folder holds something else: ``over`` of a comparison, None for a
    single study.
    """
    if is_comparison(folder):
        known = axes_of(folder)
        if known != (None if over is None else list(over)):
            raise ValueError(
                f"{folder}: holds a comparison over {' and '.join(known)}; choose another --output"
            )
        before = parse(
            stored_comparison(folder)["spec"], str(StudyFolder(folder).comparison), locations=False
        ).space.identity()
        for field, value in spec.space.identity().items():
            if before[field] != value:
                raise ValueError(
                    f"space.{field}: must stay as it was when the comparison in {folder} began"
                    f" ({before[field]}), but got {value}; choose another --output"
                )
    elif over is not None and StudyFolder(folder).study_database.is_file():
        raise ValueError(f"{folder}: holds a study, not a comparison; choose another --output")


def axes_of(folder: Path) -> list[str]:
    """What a folder's comparison is over, as it was asked for."""
    found: list[str] = stored_comparison(folder)["over"]
    return found


def stored_comparison(folder: Path) -> dict[str, Any]:
    """What ``write`` kept. Raises ValueError where it is damaged."""
    try:
        plain = yaml.safe_load(StudyFolder(folder).comparison.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{StudyFolder(folder).comparison}: cannot be read: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(plain, dict) or not {"spec", "over", "failures", "notes"} <= plain.keys():
        raise ValueError(
            f"{StudyFolder(folder).comparison}: spec, over, failures and notes must be in it"
        )
    return plain


def is_comparison(folder: str | Path) -> bool:
    """Whether a folder holds a comparison."""
    return StudyFolder(Path(folder)).comparison.is_file()


def record_versions(folder: Path) -> None:
    """Keep in a folder what searches it from now on, behind what did before, where that is
    something else.
    """
    known, now = recorded_versions(folder), versions()
    if known[-1:] != [now]:
        write_whole(StudyFolder(folder).versions, json.dumps([*known, now], indent=2) + "\n")


def recorded_versions(folder: Path) -> list[dict[str, str]]:
    """What searched a folder, as ``versions`` has it, the first one first. Raises ValueError where
    it is damaged.
    """
    path = StudyFolder(folder).versions
    if not path.is_file():
        return []
    try:
        found = [dict(each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read: {first_line(error)}; it may be deleted"
        ) from error
    return found


def joined_versions(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Versions by name, of which a study that was gone on with may have several."""
    names = dict.fromkeys(name for each in found for name in each)
    return {
        name: ", then ".join(dict.fromkeys(each[name] for each in found if name in each))
        for name in names
    }
