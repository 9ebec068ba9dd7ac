"""A study's folder: the names of its files, its lock, its spec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from filelock import FileLock, Timeout

from cabs_search.common.files import write_whole
from cabs_search.spec.study import Spec


@dataclass(frozen=True)
class StudyFolder:
    """Paths in the folder of a study or a comparison: the only place that names its files."""

    path: Path

    @property
    def spec(self) -> Path:
        """The resolved spec."""
        return self.path / "spec.yaml"

    @property
    def study_database(self) -> Path:
        """Optuna's study, unless the spec names another database."""
        return self.path / "study.db"

    @property
    def outcomes(self) -> Path:
        """The folder with the record of scored items."""
        return self.path / "outcomes"

    @property
    def tracking_database(self) -> Path:
        """MLflow's runs, unless a server has them."""
        return self.path / "mlflow.db"

    @property
    def tracking_address(self) -> Path:
        """The address of the tracking server, if the runs are at one."""
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
        """Versions of the packages that searched here."""
        return self.path / "versions.json"

    @property
    def comparison(self) -> Path:
        """Axes, failures and notes of a comparison."""
        return self.path / "comparison.yaml"

    @property
    def lock(self) -> Path:
        """The lock of the one driver that may write here."""
        return self.path / ".lock"


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
    text = yaml.safe_dump(spec.as_dict(), sort_keys=False, allow_unicode=True)
    write_whole(StudyFolder(folder).spec, text)
