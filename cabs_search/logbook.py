"""MLflow beside a search: written by a thread of its own, what cannot be written now later; no result depends on it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cabs_search.checkpoint import first_line
from cabs_search.outcomes import Outcomes, Scored
from cabs_search.spec import Spec

if TYPE_CHECKING:
    from cabs_search.search.study import Finished
    from cabs_search.tracking import Model, Summary, Tracker

Say = Callable[[str], object]
Act = Callable[["Tracker"], object]
UNWRITTEN = 1000
"""Candidates that MLflow may lag behind, before a search waits for it: more than end while a server is given up."""
RETRY_SECONDS = 15.0
"""After which a server that did not answer is tried again, by the next candidate."""


class Logbook:
    """One thread for all studies of a run, and whether MLflow can be written now; says once where it cannot."""

    def __init__(self, folder: Path, uri: str | None, say: Say) -> None:
        """Args:
        folder: the run's, with MLflow's database where there is no server.
        uri: a tracking URI; None: SQLite in ``folder``.
        say: told what the user must know.
        """
        from cabs_search.tracking import default_uri

        self.folder, self.given_uri, self.say = folder, uri, say
        self.uri = uri or default_uri(folder)
        self._room = BoundedSemaphore(UNWRITTEN)
        self._thread = ThreadPoolExecutor(1)
        self._is_away, self._again = False, 0.0
        self.is_hurried = False
        """Whether somebody waits for the end: candidates that are not written are left to the next run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_hurried = isinstance(error, KeyboardInterrupt)
        self._thread.shutdown()  # when all is done

    def study(self, spec: Spec, experiment: str | None = None) -> StudyLog:
        """What writes one study's runs."""
        return StudyLog(self, spec, experiment)

    def later(self, act: Callable[[], None]) -> None:
        """Have the thread do something, in order."""
        self._room.acquire()
        self._thread.submit(act).add_done_callback(lambda _: self._room.release())

    @property
    def may_try(self) -> bool:
        """Whether MLflow answers, as far as is known, or it is time to see."""
        return not self._is_away or time.monotonic() >= self._again

    def lost(self, error: Exception) -> None:
        """Take note that MLflow cannot be written."""
        if not self._is_away:
            self.say(
                f"MLflow at {self.uri} cannot be written ({_cause(error)}); the search goes on, and what is missing "
                f"follows, or else with the next run on {self.folder}"
            )
        self._is_away, self._again = True, time.monotonic() + RETRY_SECONDS

    def regained(self) -> None:
        """Take note that MLflow was written."""
        if self._is_away:
            self.say(f"MLflow at {self.uri} answers again; what it missed is written")
        self._is_away = False


class StudyLog:
    """One study's runs in MLflow: what was missed is kept, in order, until it is written."""

    def __init__(self, book: Logbook, spec: Spec, experiment: str | None = None) -> None:
        self._book, self._spec, self._experiment = book, spec, experiment
        self._missed: deque[Act] = deque()
        self._tracker: Tracker | None = None
        self._connect: Callable[[], Tracker] | None = None
        self._has_ended = False

    def open(self, outcomes: Outcomes, study_id: str) -> None:
        """Find or make the study's run."""
        items = outcomes.bound(self._spec)  # not in the thread, to which an open record does not belong

        def connect() -> Tracker:
            from cabs_search.tracking import Tracker

            book = self._book
            return Tracker(self._spec, book.folder, study_id, book.given_uri, self._experiment, items)

        self._connect = connect
        self._later(lambda _: None)

    def candidate(self, finished: Finished) -> None:
        """Write a candidate that has ended."""
        self._later(lambda tracker: tracker.candidate(finished))

    def end(self, confirmed: Mapping[str, Scored], summary: Summary, model: Model | None = None) -> None:
        """Write what the study has found, and close its run."""

        def act(tracker: Tracker) -> None:
            tracker.finished(confirmed, summary)
            if model is not None:
                self._log_model(tracker, model, summary.metrics)
            tracker.end()
            self._has_ended = True

        self._later(act, now=True)

    def _log_model(self, tracker: Tracker, model: Model, metrics: Mapping[str, float]) -> None:
        try:
            tracker.log_model(model, metrics)
        except Exception as error:
            self._book.say(
                f"the best found is not in MLflow as a model ({_cause(error)}); cabs-search export writes it"
            )

    def close(self) -> None:
        """Close the run of a study that did not end by itself."""
        if self._connect is not None:
            self._later(lambda tracker: None if self._has_ended else tracker.close(), now=True)

    def _later(self, act: Act, *, now: bool = False) -> None:
        self._book.later(lambda: self._write(act, now=now))

    def _write(self, act: Act, *, now: bool) -> None:
        """Do what was missed, in order, and this; a new connection sees what of it has been written all the same."""
        if self._book.is_hurried:
            if not now:
                return
            self._missed.clear()
        self._missed.append(act)
        if not (now or self._book.may_try):
            return
        try:
            if self._tracker is None:
                assert self._connect is not None, "a study is opened before it is written"
                self._tracker = self._connect()
            while self._missed:
                self._missed[0](self._tracker)
                self._missed.popleft()
        except Exception as error:
            self._tracker = None
            self._book.lost(error)
        else:
            self._book.regained()


def _cause(error: BaseException) -> str:
    """What lies behind an error, in a few words."""
    while (deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = deeper
    return first_line(error)[:120]
