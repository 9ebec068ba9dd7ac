"""Run the same search for each value of an axis."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cabs_search.common.formats import first_line
from cabs_search.record.folder import (
    StudyFolder,
    StudyId,
    only_driver,
    record_versions,
    write_comparison,
    write_spec,
)
from cabs_search.record.outcomes import Outcomes
from cabs_search.results.comparison import Comparison, read_comparison
from cabs_search.results.leaderboard import board_of
from cabs_search.results.scores import RecordScores
from cabs_search.scoring.calibrate import calibrated_methods, check_calibration
from cabs_search.search.axes import Value, axis_values, experiment_name
from cabs_search.search.candidates import candidate_of
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tracking.background import BackgroundTracker, Say, StudyLog
from cabs_search.workflows.findings import findings, write_study_page
from cabs_search.workflows.prepare import Prepared, to_stderr

if TYPE_CHECKING:
    from cabs_search.search.studies import Studies
    from cabs_search.search.study import IsBusy, Study


def compare(
    spec: Spec | str | Path,
    over: Sequence[str],
    output: str | Path | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    say: Say = to_stderr,
) -> Comparison:
    """The same search for each value of an axis; on a folder with an unfinished comparison, go on
    with it.

    Args:
        spec: a spec, or the path of its file; ``search.trials`` is each value's budget.
        over: as in ``comparison.values``.
        output: the comparison's folder; None: ``results/NAME-over-AXES``.
        address, tracking_uri, say: as in ``run``.

    Raises:
        ValueError: the spec, the axes, its models or its data are wrong; nothing has been written
            then.
        RuntimeError: the workers failed on the way; what was scored is kept. A row that fails is no
            error: it says why.

    """
    spec = spec if isinstance(spec, Spec) else load(spec)
    rows = [value for value in axis_values(spec, over) if value.same_as is None]
    name = experiment_name(spec, over)
    opened = Prepared(spec, output or Path("results") / name, address, say, over)
    with (
        only_driver(opened.folder) as is_new,
        BackgroundTracker(opened.folder, tracking_uri, say) as book,
    ):
        from cabs_search.cluster.driver import search

        try:
            outcomes = Outcomes(StudyFolder(opened.folder).outcomes, spec.tasks)
            outcomes.bind(spec, opened.items, opened.weights)
        except ValueError:
            if is_new:
                shutil.rmtree(opened.folder)
            raise
        trackers = {v.label: book.study(v.spec, name) for v in rows}
        compared = _Compared(opened, over, rows, outcomes, trackers)
        calibrations = compared.prune_calibrated()
        write_spec(spec, opened.folder)
        record_versions(opened.folder)
        compared.write()
        say(f"starting workers for {len(rows)} studies; they are kept in {opened.folder}")
        try:
            search(
                compared.studies(),
                opened.items,
                cache_folder(),
                calibrations=calibrations,
                address=address,
            )
        finally:
            for tracked in trackers.values():
                tracked.close()
        found = read_comparison(opened.folder)
        write_study_page(found, opened.folder, say)
    return found


class _Compared:
    """The studies of a comparison: opened when workers reach them, written down when they end."""

    def __init__(
        self,
        opened: Prepared,
        over: Sequence[str],
        rows: Sequence[Value],
        outcomes: Outcomes,
        trackers: Mapping[str, StudyLog],
    ) -> None:
        self._opened, self._over, self._rows = opened, over, rows
        self._outcomes, self._trackers = outcomes, trackers
        self._failures: dict[str, str] = {}

    def prune_calibrated(self) -> dict[str, Path]:
        """As ``_Opened.prune_calibrated`` for all rows; a row for which it cannot be done fails by
        itself.
        """
        wanting: dict[str, Spec] = {}
        for value in self._rows:
            try:
                check_calibration(value.spec)
                wanting |= {value.label: value.spec} if calibrated_methods(value.spec) else {}
            except ValueError as error:
                self._failures[value.label] = first_line(error)
        try:
            return self._opened.prune_calibrated(*wanting.values())
        except (ValueError, RuntimeError) as error:
            self._failures |= dict.fromkeys(wanting, first_line(error))
            return {}

    def studies(self) -> Studies:
        """All rows that can run, as what the driver runs; the first one confirms base and
        experts.
        """
        from cabs_search.search.studies import PlannedStudy, Studies

        runnable = [value for value in self._rows if value.label not in self._failures]
        planned = {
            v.label: PlannedStudy(
                budget=v.spec.search.trials, open=partial(self._open, v, v is runnable[0])
            )
            for v in runnable
        }
        return Studies(self._opened.spec, self._opened.items, self._outcomes, planned, self._ended)

    def _open(self, value: Value, confirms_references: bool, is_busy: IsBusy) -> Study:
        from cabs_search.search.study import Study, open_database

        study_id = StudyId(self._outcomes.study_id(), value.label)
        database = open_database(value.spec, self._opened.folder, study_id)
        self._trackers[value.label].open(self._outcomes, str(study_id))
        return Study(
            value.spec,
            database,
            self._opened.items,
            self._outcomes,
            on_finished=self._trackers[value.label].candidate,
            confirms_references=confirms_references,
            is_busy=is_busy,
        )

    def _ended(self, label: str, study: Study) -> None:
        if study.failure:
            self._failures[label] = study.failure
            self._trackers[label].close()
        else:
            try:
                self._track(label, study)
            except Exception as error:  # is this row's alone: what it scored is on record
                self._opened.say(f"{label}: what it found is not in MLflow: {first_line(error)}")
                self._trackers[label].close()
        self.write()

    def _track(self, label: str, study: Study) -> None:
        scores = RecordScores.read(study.spec, self._outcomes, candidate_of(study.spec))
        board = board_of(study.spec, scores)
        best = study.best if study.spec.tracking.model == "always" else None
        self._trackers[label].end(
            scores.confirmed, *findings(self._opened, study.spec, board, best, {}, row=label)
        )

    def write(self) -> None:
        """Keep what the record does not say."""
        opened = self._opened
        write_comparison(opened.folder, opened.spec, self._over, self._failures, opened.notes)
