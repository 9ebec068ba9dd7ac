"""MLflow beside a search: written by a thread of its own, what cannot be written now later; no
result depends on it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cabs_search.record.outcomes import Outcomes, Scored
from cabs_search.spec.study import Spec

if TYPE_CHECKING:
    from cabs_search.search.jobs import Finished
    from cabs_search.tracking.models import Model
    from cabs_search.tracking.summary import Summary
    from cabs_search.tracking.tracker import Tracker


Say = Callable[[str], object]
Act = Callable[["Tracker"], object]
UNWRITTEN = 1000
"""Candidates that MLflow may lag behind, before a search waits for it: more than end while a server
is given up.
"""
RETRY_SECONDS = 15.0
"""After which a server that did not answer is tried again, by the next candidate."""
FORCED_SECONDS = 20.0
"""What tries before that, at the ends of studies, may cost in all: a server that swallows requests
costs ten each.
"""
TAIL_SECONDS = 60.0
"""How long a result waits for a server once the search has ended."""


class BackgroundTracker:
    """One thread for all studies of a run, and whether MLflow can be written now; says once where
    it cannot.
    """

    def __init__(self, folder: Path, uri: str | None, say: Say) -> None:
        """Args:
        folder: the run's, with MLflow's database where there is no server.
        uri: a tracking URI; None: SQLite in ``folder``.
        say: told what the user must know.
        """
        from cabs_search.common.redact import without_password
        from cabs_search.tracking.server import default_uri

        self.folder, self.given_uri, self.say = folder, uri, say
        self.uri = uri or default_uri(folder)
        self._name = f"MLflow at {without_password(self.uri)}"
        self._room = BoundedSemaphore(UNWRITTEN)
        self._thread = ThreadPoolExecutor(1)
        self._is_away, self._again, self._forced_seconds = False, 0.0, 0.0
        self._logs: list[StudyLog] = []
        self._refused: set[str] = set()
        self._ends_at, self._has_left = float("inf"), False
        self.is_hurried = False
        """Whether somebody waits for the end: candidates that are not written are left to the next
        run.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_hurried = isinstance(error, KeyboardInterrupt)
        if self.given_uri is not None:  # the folder's own file keeps nobody waiting
            self._ends_at = time.monotonic() + TAIL_SECONDS
        for log in self._logs:
            log.retry()
        self._thread.shutdown()  # when all is done
        if self._has_left and not self._is_away:
            self.say(
                f"{self._name} is slow; what is not written yet follows with the next run on"
                f" {self.folder}"
            )

    def study(self, spec: Spec, experiment: str | None = None) -> StudyLog:
        """What writes one study's runs."""
        self._logs.append(StudyLog(self, spec, experiment))
        return self._logs[-1]

    def later(self, act: Callable[[], None]) -> None:
        """Have the thread do something, in order."""
        self._room.acquire()
        self._thread.submit(act).add_done_callback(lambda _: self._room.release())

    def may_try(self, *, now: bool) -> bool:
        """Whether MLflow answers, as far as is known, or it is time to see; ``now``: a little
        before that, too.
        """
        is_due = not self._is_away or time.monotonic() >= self._again
        return is_due or (now and self._forced_seconds < FORCED_SECONDS)

    def must_leave(self) -> bool:
        """Whether the result has waited long enough: what is unwritten is left to the next run."""
        is_late = time.monotonic() >= self._ends_at
        self._has_left |= is_late
        return is_late

    def lost(self, error: Exception, forced_seconds: float) -> None:
        """Take note that MLflow cannot be written; ``forced_seconds``: what that cost, if it was
        not time to see.
        """
        from cabs_search.tracking.failures import cause

        if not self._is_away:
            self.say(
                f"{self._name} cannot be written ({cause(error)}); the search goes on, and what is"
                f" missing follows, or else with the next run on {self.folder}"
            )
        self._is_away, self._again = True, time.monotonic() + RETRY_SECONDS
        self._forced_seconds += forced_seconds

    def refused(self, what: str, error: Exception) -> None:
        """Take note of something that MLflow does not take, now or later; said once of a kind."""
        from cabs_search.tracking.failures import cause

        if what not in self._refused:
            self.say(f"{self._name} does not take {what} ({cause(error)}); all else is written")
        self._refused.add(what)

    def regained(self) -> None:
        """Take note that MLflow was written."""
        if self._is_away:
            self.say(f"{self._name} answers again; what it missed is written")
        self._is_away, self._forced_seconds = False, 0.0


class StudyLog:
    """One study's runs in MLflow: what was missed is kept, in order, until it is written."""

    def __init__(self, book: BackgroundTracker, spec: Spec, experiment: str | None = None) -> None:
        self._book, self._spec, self._experiment = book, spec, experiment
        self._missed: deque[tuple[str, Act]] = deque()
        self._tracker: Tracker | None = None
        self._connect: Callable[[], Tracker] | None = None
        self._has_ended = False

    def open(self, outcomes: Outcomes, study_id: str) -> None:
        """Find or make the study's run."""
        items = outcomes.bound()  # not in the thread, to which an open record does not belong

        def connect() -> Tracker:
            from cabs_search.tracking.tracker import Tracker

            book = self._book
            return Tracker(
                self._spec,
                book.folder,
                study_id,
                book.given_uri,
                self._experiment,
                items,
                book.refused,
            )

        self._connect = connect
        self._later(("the study", lambda _: None))

    def candidate(self, finished: Finished) -> None:
        """Write a candidate that has ended."""
        self._later(("a candidate", lambda tracker: tracker.candidate(finished)))

    def end(
        self, confirmed: Mapping[str, Scored], summary: Summary, model: Model | None = None
    ) -> None:
        """Write what the study has found, and close its run."""

        def end(tracker: Tracker) -> None:
            tracker.end()
            self._has_ended = True

        found: list[tuple[str, Act]] = [
            ("what a study found", lambda tracker: tracker.finished(confirmed, summary)),
            ("the end of a study", end),
        ]
        if model is not None:
            found.insert(
                1, ("a model", lambda tracker: self._log_model(tracker, model, summary.metrics))
            )
        self._later(*found, now=True)

    def _log_model(self, tracker: Tracker, model: Model, metrics: Mapping[str, float]) -> None:
        from cabs_search.tracking.failures import cause, is_unanswered

        try:
            tracker.log_model(model, metrics)
        except Exception as error:
            if is_unanswered(error):
                raise
            self._book.say(
                f"the best found is not in MLflow as a model ({cause(error)}); cabs-search export"
                " writes it"
            )

    def close(self) -> None:
        """Close the run of a study that did not end by itself."""
        if self._connect is not None:
            self._later(
                ("the end of a study", lambda t: None if self._has_ended else t.close()), now=True
            )

    def retry(self) -> None:
        """Try a last time to write what was missed."""
        self._later(now=True)

    def _later(self, *acts: tuple[str, Act], now: bool = False) -> None:
        self._book.later(lambda: self._write(acts, now=now))

    def _write(self, acts: Sequence[tuple[str, Act]], *, now: bool) -> None:
        """Do what was missed, in order, and this; a new connection sees what of it has been written
        all the same.
        """
        book = self._book
        if book.is_hurried:
            if not now:
                return
            self._missed.clear()
        self._missed += acts
        if not self._missed or not book.may_try(now=now) or book.must_leave():
            return
        is_forced, began = not book.may_try(now=False), time.monotonic()
        try:
            self._do_missed()
        except Exception as error:
            self._tracker = None
            book.lost(error, time.monotonic() - began if is_forced else 0.0)
        else:
            book.regained()

    def _do_missed(self) -> None:
        """What is refused is dropped, and keeps nothing else waiting."""
        from cabs_search.tracking.failures import is_unanswered

        if self._tracker is None:
            assert self._connect is not None, "a study is opened before it is written"
            self._tracker = self._connect()
        while self._missed and not self._book.must_leave():
            what, act = self._missed[0]
            try:
                act(self._tracker)
            except Exception as error:
                if is_unanswered(error):
                    raise
                self._book.refused(what, error)
            self._missed.popleft()
