"""Run the same search for each value of an axis."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cabs_search.common.formats import first_line
from cabs_search.merging.method import calibrated_methods, check_experts
from cabs_search.record.comparison_file import write_comparison
from cabs_search.record.folder import StudyFolder, StudyId, only_driver, write_spec
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.progress_file import note_beginning
from cabs_search.record.versions_file import record_versions
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import board_of
from cabs_search.results.read_comparison import read_comparison
from cabs_search.results.scores import RecordScores
from cabs_search.scoring.calibrate import check_calibration
from cabs_search.search.axes import Value, axis_values, experiment_name
from cabs_search.search.candidates import Candidates, ensemble_recipes, reference_recipes
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tracking.background import BackgroundTracker, Say, StudyLog
from cabs_search.workflows.findings import findings, write_study_page
from cabs_search.workflows.prepare import (
    Calibrated,
    Prepared,
    check_databases,
    prepare,
    prune_calibrated,
    to_stderr,
)

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
    """Run the same search for each value of an axis; continue a folder's unfinished comparison.

    Args:
        spec: a spec, or the path of its file; the budget in ``search`` is each value's.
        over: as in ``axis_values``.
        output: the comparison's folder; None: ``results/NAME-over-AXES``.
        address, tracking_uri, say: as in ``run``.

    Raises:
        ValueError: the spec, the axes, its models or its data are wrong; nothing is written then.
        RuntimeError: the workers failed on the way; all scores so far are kept. A row that fails is
            no error: it says why.

    """
    spec = spec if isinstance(spec, Spec) else load(spec)
    axis_values(spec, over)  # wrong axes are told before anything is read
    name = experiment_name(spec.name, over)
    prepared = prepare(spec, output or Path("results") / name, address, say, over)
    spec, folder, items = prepared.spec, prepared.folder, prepared.items
    rows = [value for value in axis_values(spec, over) if value.same_as is None]
    check_databases(spec, folder, tracking_uri)
    with only_driver(folder) as is_new, BackgroundTracker(folder, tracking_uri, say) as book:
        from cabs_search.cluster.driver import search

        note_beginning(folder, spec.name)
        try:
            outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks)
            outcomes.bind(spec, items, prepared.weights)
        except ValueError:
            if is_new:
                shutil.rmtree(folder)
            raise
        trackers = {row.label: book.study(row.spec, name) for row in rows}
        calibrated, failures = _prune_calibrated(prepared, rows, say)
        write_spec(spec, folder)
        record_versions(folder)
        compared = _Compared(
            prepared, over, rows, outcomes, trackers, failures, calibrated.notes, say
        )
        compared.write()
        say(f"{len(rows)} studies are kept in {folder}")
        try:
            files = calibrated.files
            studies = compared.studies()
            search(
                studies,
                items,
                cache_folder(),
                calibrations=files,
                weights=prepared.weights,
                address=address,
                note=StudyFolder(folder).progress,
            )
        finally:
            for tracker in trackers.values():
                tracker.close()
        comparison = read_comparison(folder)
        write_study_page(comparison, folder, say)
    return comparison


def _prune_calibrated(
    prepared: Prepared, rows: Sequence[Value], say: Say
) -> tuple[Calibrated, dict[str, str]]:
    """Find the rows that cannot run; build the vectors that need calibration items, for all others
    at once.

    Returns:
        What was built, and by row the reason why it cannot run.

    """
    failures: dict[str, str] = {}
    needing: dict[str, Spec] = {}
    for row in rows:
        try:
            check_experts(row.spec.methods, row.spec.experts)
            check_calibration(row.spec.methods, row.spec.experts, row.spec.tasks)
            if calibrated_methods(row.spec.methods):
                needing[row.label] = row.spec
        except ValueError as error:
            failures[row.label] = first_line(error)
    try:
        return prune_calibrated(prepared, needing.values(), say), failures
    except (ValueError, RuntimeError) as error:
        return Calibrated(), failures | dict.fromkeys(needing, first_line(error))


@dataclass
class _Compared:
    """The studies of a comparison: opened when workers reach them, recorded when they end."""

    prepared: Prepared
    over: Sequence[str]
    rows: Sequence[Value]
    outcomes: Outcomes
    trackers: Mapping[str, StudyLog]
    failures: dict[str, str]
    notes: Sequence[str]
    say: Say

    def studies(self) -> Studies:
        """All rows that can run, as what the driver runs; the first one confirms base and
        experts.
        """
        from cabs_search.search.studies import PlannedStudy, Studies

        runnable = [value for value in self.rows if value.label not in self.failures]
        planned = {
            v.label: PlannedStudy(
                search=v.spec.search, open=partial(self._open, v, v is runnable[0])
            )
            for v in runnable
        }
        return Studies(self.prepared.spec, self.prepared.items, self.outcomes, planned, self._ended)

    def _open(self, value: Value, confirms_references: bool, is_busy: IsBusy) -> Study:
        from cabs_search.search.study import Study, open_database

        study_id = StudyId(self.outcomes.study_id(), value.label)
        database = open_database(value.spec, self.prepared.folder, study_id)
        self.trackers[value.label].open(self.outcomes, study_id)
        return Study(
            value.spec,
            database,
            self.prepared.items,
            self.outcomes,
            on_finished=self.trackers[value.label].candidate,
            confirms_references=confirms_references,
            is_busy=is_busy,
        )

    def _ended(self, label: str, study: Study) -> None:
        if study.failure:
            self.failures[label] = study.failure
            self.trackers[label].close()
        else:
            try:
                self._track(label, study)
            except Exception as error:  # the row's scores are on record, and other rows go on
                self.say(f"{label}: what it found is not in MLflow: {first_line(error)}")
                self.trackers[label].close()
        self.write()

    def _track(self, label: str, study: Study) -> None:
        own, outcomes = study.spec, self.outcomes
        references = [*reference_recipes(own.experts).values(), *ensemble_recipes(own).values()]
        scores = RecordScores.read(outcomes, own, Candidates.of(own).includes, references)
        board = board_of(own, scores)
        best = study.best if study.spec.tracking.model == "always" else None
        results = findings(self.prepared, board, best, {}, row=label)
        self.trackers[label].end(scores.confirmed, *results)

    def write(self) -> None:
        """Write the axes, failures and notes, which the record does not hold."""
        prepared = self.prepared
        write_comparison(prepared.folder, prepared.spec, self.over, self.failures, self.notes)
