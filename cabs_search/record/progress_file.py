"""The file of a study's folder that says how far its search is; ``cabs-search status`` reads it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from cabs_search.common.files import write_whole
from cabs_search.common.formats import first_line
from cabs_search.record.folder import StudyFolder

State: TypeAlias = Literal["at work", "finished", "stopped"]
SILENT_SECONDS = 60.0
"""Time without news after which a search that is at work counts as killed."""
PREPARING, PREPARING_SECONDS = "preparing", 1800.0
"""Phase before workers start, in which nothing is noted, and its longest time."""


@dataclass(frozen=True)
class Share:
    """Part of a limit of the search that is spent."""

    unit: Literal["candidate", "item", "second", "run"]
    spent: int | float
    limit: int | float


@dataclass(frozen=True, kw_only=True)
class Status:
    """News of a search, as its driver last noted them."""

    name: str
    state: State
    phase: str
    """The stage of the work, as the progress bar names it."""
    candidates: int
    """Candidates that have ended."""
    spent: Sequence[Share]
    """Parts of all limits: candidates, items, seconds."""
    best: float | None
    """Best score on the search items."""
    items: int
    """Items scored in this run."""
    items_per_second: float
    """Rate of this run."""
    seconds_left: float | None
    """Time until the phase is over at its rate in this run; None if it is not known."""
    noted: float
    """Time of the note, in seconds since 1970, by the driver's clock."""

    @property
    def age(self) -> float:
        """Seconds since the note."""
        return max(0.0, time.time() - self.noted)

    @property
    def is_silent(self) -> bool:
        """True if the driver was at work and has noted nothing for long: it was killed.

        A note of a later time is one of before the clock was set back.
        """
        most = PREPARING_SECONDS if self.phase == PREPARING else SILENT_SECONDS
        return self.state == "at work" and abs(time.time() - self.noted) > most

    def as_json(self) -> str:
        """Write it with what depends on the time of asking."""
        return json.dumps(asdict(self) | {"age": self.age, "is_silent": self.is_silent}, indent=2)


def note_status(file: Path, status: Status) -> None:
    """Write a note in place of the last one, if the disk takes it: no search ends for a note."""
    with suppress(OSError):
        write_whole(file, json.dumps(asdict(status)) + "\n")


def note_beginning(folder: Path, name: str) -> None:
    """Note that a driver prepares a search; what an earlier one noted is out of date then."""
    status = Status(
        name=name,
        state="at work",
        phase=PREPARING,
        candidates=0,
        spent=(),
        best=None,
        items=0,
        items_per_second=0.0,
        seconds_left=None,
        noted=time.time(),
    )
    note_status(StudyFolder(folder).progress, status)


def read_status(folder: Path) -> Status:
    """Read the last note of a study's or comparison's driver.

    Raises:
        ValueError: there is none, or it is damaged.

    """
    path = StudyFolder(folder).progress
    if not path.is_file():
        raise ValueError(f"{folder}: no search has begun there")
    try:
        return parse_status(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: cannot be read: {first_line(error)}; it may be deleted"
        ) from error


def parse_status(text: str) -> Status:
    """Read what ``note_status`` or ``as_json`` wrote, the latter maybe by another clock.

    What stands after it is not read.

    Raises:
        ValueError, TypeError: it is something else.

    """
    values, _ = json.JSONDecoder().raw_decode(text.strip())
    if not isinstance(values, dict) or not isinstance(values.get("spent"), list):
        raise ValueError("it is no news of a search")
    age, _ = values.pop("age", None), values.pop("is_silent", None)
    try:
        found = TypeAdapter(Status).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}") from None
    amounts = [found.noted, found.items_per_second, found.seconds_left or 0.0, age or 0.0]
    amounts += [amount for share in found.spent for amount in (share.spent, share.limit)]
    if not all(map(math.isfinite, amounts)):
        raise ValueError("amounts and times must be finite")
    noted = found.noted if age is None else time.time() - age
    return replace(found, spent=tuple(found.spent), noted=noted)
