"""Run one study from its spec to its leaderboard."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from cabs_search.merging.recipe import Recipe
from cabs_search.record.folder import StudyFolder, StudyId, only_driver, write_spec
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.progress_file import note_beginning
from cabs_search.record.versions_file import record_versions
from cabs_search.results.leaderboard import Leaderboard, board_of
from cabs_search.results.scores import RecordScores
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tracking.background import BackgroundTracker, Say
from cabs_search.workflows.findings import findings, study_files
from cabs_search.workflows.prepare import check_databases, prepare, prune_calibrated, to_stderr


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Results of a search and where they are kept."""

    folder: Path
    leaderboard: Leaderboard
    best: Recipe
    """Candidate that the search recommends, else the candidate with the best search score."""
    scored_items: int
    """Items scored in this run; those on record are not scored again."""
    tracking_uri: str


def run(
    spec: Spec | str | Path,
    output: str | Path | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    say: Say = to_stderr,
) -> SearchResult:
    """Search a space until its budget is spent; continue the unfinished study of a folder.

    Args:
        spec: a spec, or the path of its file.
        output: the study's folder; None: ``results/NAME``.
        address: a running Ray cluster's; None: workers on this machine.
        tracking_uri: MLflow's; None: SQLite in the folder.
        say: receives lines on what is being done.

    Raises:
        ValueError: the spec, its models or its data are wrong; nothing is written then.
        RuntimeError: the search failed on the way; all scores so far are kept.

    """
    prepared = prepare(spec, output, address, say)
    check_databases(prepared.spec, prepared.folder, tracking_uri)
    spec, folder, items = prepared.spec, prepared.folder, prepared.items
    with only_driver(folder) as is_new, BackgroundTracker(folder, tracking_uri, say) as book:
        from cabs_search.cluster.driver import search
        from cabs_search.search.study import Study, open_database

        note_beginning(folder, spec.name)
        try:
            outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks)
            outcomes.bind(spec, items, prepared.weights)
            database = open_database(spec, folder, StudyId(outcomes.study_id()))
            write_spec(spec, folder)
            calibrated = prune_calibrated(prepared, [spec], say)
        except ValueError:
            if is_new:  # bad input: nothing was done yet
                shutil.rmtree(folder)
            raise
        record_versions(folder)
        tracked = book.study(spec)
        tracked.open(outcomes, database.id)
        study = Study(
            spec,
            database,
            items,
            outcomes,
            on_finished=tracked.candidate,
            tensors=prepared.family.alignment.shared,
        )
        say(f"the study is kept in {folder}")
        try:
            search(
                study,
                items,
                cache_folder(),
                calibrations=calibrated.files,
                weights=prepared.weights,
                address=address,
                note=StudyFolder(folder).progress,
            )
            scores = RecordScores.read(outcomes, spec)
            board = board_of(spec, scores)
            files = study_files(board, folder, say)
            tracked.end(board.confirmed(scores), *findings(prepared, board, study.chosen, files))
        except BaseException:
            tracked.close()
            raise
    if study.converged:
        say(
            f"the search has ended after {study.done} candidates: what it may still gain is less"
            " than the noise of a score (search.stops: false goes on)"
        )
    elif study.exhausted:
        say(
            f"nothing new was proposed after {study.done} candidates: the space is, or nearly is,"
            f" searched through, or {spec.search.sampler_used} has converged"
        )
    if study.chosen is None:
        raise RuntimeError("no candidate was scored")
    return SearchResult(
        folder=folder,
        leaderboard=board,
        best=study.chosen.recipe,
        scored_items=study.scored_items,
        tracking_uri=book.uri,
    )
