"""MLflow beside a search: a queue of idempotent writes and one thread that works it off.

No result depends on MLflow, and the search never waits for it. The thread does the writes of all
studies of a run one after another. A write that fails is judged by one rule:

- MLflow did not answer: the study's runs are looked up anew and the write is tried again, every
  ``RETRY_SECONDS``; once the search has ended, at once, until ``LAST_TRIES`` in a row have failed.
- MLflow refused: that is said, and this write alone is left out.

``TAIL_SECONDS`` after the end of the search, what is still queued is left to the next run on the
folder, which writes everything that is missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self

import yaml

from cabs_search.common.redact import without_password, without_passwords
from cabs_search.record.entries import Scored
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.candidates import Candidates
from cabs_search.spec.study import Spec
from cabs_search.tracking import models, writes
from cabs_search.tracking.failures import ARTIFACT_STORE_DOWN, cause, is_unanswered
from cabs_search.tracking.runs import colors_of, study_params, table_bytes
from cabs_search.tracking.server import default_uri, given_uri, remember_uri
from cabs_search.tracking.study_runs import StudyRuns, find_runs

if TYPE_CHECKING:
    from cabs_search.search.jobs import Finished
    from cabs_search.tracking.models import Model
    from cabs_search.tracking.summary import Summary


Say = Callable[[str], object]
RETRY_SECONDS = 15.0
"""Pause before a server that did not answer is tried again."""
LAST_TRIES = 2
"""Tries of a server that does not answer, once the search has ended; each may take ten seconds."""
TAIL_SECONDS = 60.0
"""Time that a result waits for a slow server."""
POINTS = 10
"""Candidates between two writes of the parent's progress."""
MODEL_REFUSED = "the best found is not in MLflow as a model ({cause}); cabs-search export writes it"
"""Said if MLflow does not take the model."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """A write to a study's runs; done twice, it leaves what it leaves once."""

    study: StudyLog
    what: str
    """Named to the user if MLflow refuses it."""
    act: Callable[..., object]
    """Called with the study's runs and ``arguments``."""
    arguments: tuple[Any, ...] = ()
    refusals: Collection[int] = ()
    """HTTP statuses that are a refusal here, whatever they mean elsewhere."""
    refused: str = "{server} does not take {what} ({cause}); all else is written"
    """Said if MLflow refuses it."""
    is_closing: bool = False
    """True if it is done even if the user interrupts the search."""


class BackgroundTracker:
    """The thread that writes to MLflow, and its queue."""

    def __init__(self, folder: Path, uri: str | None, say: Say) -> None:
        """Begin with an empty queue.

        Args:
            folder: the run's; it has MLflow's database unless a server is given.
            uri: tracking URI; None: the environment's, else SQLite in ``folder``.
            say: told what the user must know.

        """
        self.folder, self.say = folder, say
        self.given_uri = given_uri(uri)
        self.uri = self.given_uri or default_uri(folder)
        self.has_left = False
        """True if something is left to the next run on the folder."""
        self._server = f"MLflow at {without_password(self.uri)}"
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._thread = Thread(target=self._work)
        self._search_ended, self._is_interrupted = Event(), False
        self._deadline, self._last_tries = math.inf, LAST_TRIES
        self._is_late = self._is_catching_up = False
        self._refused: set[str] = set()
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._is_interrupted = isinstance(error, KeyboardInterrupt)
        if self.given_uri is not None:  # the folder's own file keeps nobody waiting
            self._deadline = time.monotonic() + TAIL_SECONDS
        self._queue.put(None)
        self._search_ended.set()
        self._thread.join()

    def study(self, spec: Spec, experiment: str | None = None) -> StudyLog:
        """Return the log of one study; ``experiment``: its comparison's name, if it is of one."""
        return StudyLog(self, spec, experiment)

    def add(self, write: Write) -> None:
        """Queue a write."""
        self._queue.put(write)

    def say_once(self, text: str) -> None:
        """Tell the user what was not told before."""
        if text not in self._told:
            self.say(text)
        self._told.add(text)

    def _work(self) -> None:
        """Do what is queued, until the search has ended."""
        while (write := self._queue.get()) is not None:
            self._do(write)
            if self._queue.empty():
                self._say_caught_up()
        self._say_caught_up()
        if self._is_late and self._last_tries:
            self.say(
                f"{self._server} is slow; what is not written yet follows with the next run on"
                f" {self.folder}"
            )

    def _do(self, write: Write) -> None:
        """Try a write until it is done, refused or left."""
        study = write.study
        while not self._must_leave(write):
            try:
                study.runs = study.runs or study.find_runs()
                write.act(study.runs, *write.arguments)
            except Exception as error:
                # Without its runs nothing of the study can be written, whatever the error.
                if study.runs and not is_unanswered(error, refusals=write.refusals):
                    self._say_refused(write, error)
                    return
                self._say_outage(error)
                # The request may have succeeded all the same, so look again at what there is.
                study.runs = None
                if self._search_ended.wait(RETRY_SECONDS):
                    self._last_tries -= 1
            else:
                self._last_tries = LAST_TRIES
                return

    def _must_leave(self, write: Write) -> bool:
        """Tell whether a write is left to the next run, because somebody waits."""
        self._is_late = time.monotonic() >= self._deadline
        is_dropped = self._is_interrupted and not write.is_closing
        must_leave = self._is_late or is_dropped or not self._last_tries
        self.has_left |= must_leave
        return must_leave

    def _say_outage(self, error: Exception) -> None:
        if not self._is_catching_up:
            self.say(
                f"{self._server} cannot be written ({cause(error)}); the search goes on, and what"
                f" is missing follows, or else with the next run on {self.folder}"
            )
        self._is_catching_up = True

    def _say_caught_up(self) -> None:
        if self._is_catching_up and not self.has_left:
            self.say(f"{self._server} answers again; what it missed is written")
            self._is_catching_up = False

    def _say_refused(self, write: Write, error: Exception) -> None:
        """Say that MLflow does not take this kind of write, once."""
        if write.what not in self._refused:
            words = {"server": self._server, "what": write.what, "cause": cause(error)}
            self.say(write.refused.format_map(words))
        self._refused.add(write.what)


class StudyLog:
    """The writes of one study."""

    def __init__(self, tracker: BackgroundTracker, spec: Spec, experiment: str | None) -> None:
        self._tracker, self._spec, self._experiment = tracker, spec, experiment
        self._colors = colors_of(Candidates.of(spec))
        self._study_id: StudyId | None = None
        self._is_open, self._candidates = False, 0
        self.runs: StudyRuns | None = None
        """The study's runs, of the writing thread; None until they are found."""

    def find_runs(self) -> StudyRuns:
        """Find or make the study's runs."""
        assert self._study_id is not None, "a study is opened before it is written"
        tracker, name = self._tracker, self._spec.name
        experiment, wanted = self._experiment or name, self._spec.tracking.artifacts
        found = find_runs(
            tracker.folder, tracker.given_uri, self._study_id, name, experiment, wanted
        )
        if wanted and found.kept_at != wanted:
            tracker.say_once(
                f"MLflow keeps the artifacts of experiment {experiment!r} at"
                f" {without_password(str(found.kept_at))}, where they began: tracking.artifacts"
                " counts for a new one"
            )
        return found

    def open(self, outcomes: Outcomes, study_id: StudyId) -> None:
        """Begin: write what is searched, with what."""
        spec, items = self._spec, outcomes.bound()  # here: the record belongs to this thread
        self._study_id, self._is_open = study_id, True
        remember_uri(self._tracker.folder, self._tracker.given_uri)
        text = yaml.safe_dump(without_passwords(spec.as_dict()), sort_keys=False)
        methods = (*spec.baselines, *spec.space.method)
        self._add("the study", writes.write_study, study_params(spec), methods)
        self._add("data sets", writes.write_data_sets, spec.tasks, items)
        self._add_files({"spec.yaml": text.encode()})
        self._add("saved views", writes.write_views, spec, self._experiment)

    def candidate(self, finished: Finished) -> None:
        """Write a candidate that has ended."""
        color = self._colors[finished.recipe.method.name]
        self._add("a candidate", writes.write_candidate, finished, color)
        self._candidates += 1
        if self._candidates % POINTS == 0:
            self._add("how far a search has come", writes.write_progress)

    def end(self, confirmed: Mapping[str, Scored], summary: Summary, model: Model | None) -> None:
        """Write what a complete study has found, and close its run.

        Args:
            confirmed: scores on the confirm split by the recipe's key.
            summary: contents of the study's run.
            model: the best candidate, to be logged.

        """
        self._add("scores on the confirm split", writes.write_confirmed, confirmed)
        if summary.front:
            self._add("the Pareto front", writes.write_front, summary.front)
        self._write_summary(summary)
        if model is not None:
            folder = self._tracker.folder
            self._add("a model", models.write_model, model, folder, refused=MODEL_REFUSED)
        self._close(is_complete=True)

    def update(self, study_id: StudyId, summary: Summary) -> None:
        """Write what is new about a study whose run has ended."""
        self._study_id = study_id
        self._write_summary(summary)

    def close(self) -> None:
        """Close the run of a study that has not ended by itself, if it was opened."""
        if self._is_open:
            self._close(is_complete=False)

    def _write_summary(self, summary: Summary) -> None:
        tables = {f"tables/{name}.json": table_bytes(rows) for name, rows in summary.tables.items()}
        self._add("a study's metrics", writes.write_metrics, summary.metrics)
        self._add_files(tables | dict(summary.files))
        self._add("a study's note", writes.write_note, summary.note, list(tables))

    def _close(self, *, is_complete: bool) -> None:
        def close(runs: StudyRuns) -> None:
            writes.close(runs, is_complete=is_complete and not self._tracker.has_left)

        self._is_open = False
        self._add("how far a search has come", writes.write_progress)
        self._add("the deletion of runs that are there twice", writes.merge_doubles)
        self._add("the end of a study", close, is_closing=True)

    def _add_files(self, files: Mapping[str, bytes]) -> None:
        self._add("artifacts", writes.write_files, files, refusals=ARTIFACT_STORE_DOWN)

    def _add(self, what: str, act: Callable[..., object], *arguments: Any, **options: Any) -> None:
        self._tracker.add(Write(study=self, what=what, act=act, arguments=arguments, **options))
