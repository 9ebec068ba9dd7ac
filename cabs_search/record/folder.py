"""A study's folder: the names of its files, its lock, its spec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from cabs_search.common.files import write_whole
from cabs_search.common.redact import without_password
from cabs_search.spec.load import dump_plain
from cabs_search.spec.study import Spec


class StudyFolder:
    """Paths in the folder of a study or a comparison: the only place that names its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.yaml"
        """The resolved spec."""
        self.study_database = path / "study.db"
        """Optuna's study, unless the spec names another database."""
        self.outcomes = path / "outcomes"
        """The folder with the record of scored items."""
        self.tracking_database = path / "mlflow.db"
        """MLflow's runs, unless a server has them."""
        self.tracking_address = path / "tracking-uri.txt"
        """The address of the tracking server or its database, if the runs are at one."""
        self.artifacts = path / "artifacts"
        """MLflow's artifacts, unless a server has them."""
        self.page = path / "report.html"
        """The report as one page."""
        self.versions = path / "versions.json"
        """Versions of the packages that searched here."""
        self.progress = path / "progress.json"
        """The last news of the search."""
        self.comparison = path / "comparison.yaml"
        """Axes, failures and notes of a comparison."""
        self.lock = path / ".lock"
        """The lock of the one driver that may write here."""


class StudyId(NamedTuple):
    """Identity of a study: its record's id and, in a comparison, its value's label."""

    record: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.record}/{self.value}" if self.value else self.record


@contextmanager
def only_driver(folder: Path) -> Iterator[bool]:
    """Lock a folder for one driver, and make it if there is none.

    Yields:
        Whether the folder is new.

    Raises:
        RuntimeError: another driver holds the lock.

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
    """Write the resolved spec into a study's folder."""
    write_whole(StudyFolder(folder).spec, dump_plain(values_to_keep(spec)))


def values_to_keep(spec: Spec) -> dict[str, Any]:
    """Return a spec's plain values, its database without user and password."""
    values = spec.as_dict()
    if spec.search.storage:
        values["search"]["storage"] = without_password(spec.search.storage)
    return values
