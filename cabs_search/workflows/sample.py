"""Sample a study's finalists on the confirm split, run by run, each with a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cabs_search.kinds.generation import Sampling
from cabs_search.merging.recipe import Recipe
from cabs_search.record.comparison_file import is_comparison
from cabs_search.record.folder import StudyFolder, StudyId, only_driver
from cabs_search.record.outcomes import Outcomes
from cabs_search.results.leaderboard import Leaderboard, board_of, read_leaderboard
from cabs_search.results.rows import FOUND, RECOMMENDED, Row
from cabs_search.results.sampled import LEAST_RUNS, Sampled
from cabs_search.results.scores import RecordScores
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.tasks.items import Items
from cabs_search.tracking.background import BackgroundTracker
from cabs_search.tracking.server import given_uri, uri_of
from cabs_search.workflows.findings import findings, study_files
from cabs_search.workflows.prepare import Prepared, prepare, prune_calibrated


def sample(
    folder: str | Path,
    *,
    runs: int,
    temperature: float,
    workers: int | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    say: Callable[[str], None],
) -> Sampled:
    """Sample base, experts, best baselines, and what was recommended or found best.

    Texts that are on record are not generated again. The study's page and its run in MLflow get
    the result, too.

    Args:
        folder: a study's folder, with rows confirmed.
        runs: runs of each row, two at the least; their seeds count from 1.
        temperature: what logits are divided by, above 0.
        workers: number of Ray workers; None: the study's.
        address: a running Ray cluster's; None: workers on this machine.
        tracking_uri: MLflow's; None: where the study's runs are.
        say: receives lines on what is being done.

    Returns:
        All runs at this temperature that are on record.

    Raises:
        ValueError: there is no such study, nothing is confirmed, no task generates texts, or models
            or data have changed.
        RuntimeError: sampling failed on the way; all texts so far are kept.

    """
    if runs < LEAST_RUNS or not 0 < temperature < float("inf"):
        raise ValueError(
            f"runs >= {LEAST_RUNS} and temperature > 0 must hold, but got (runs={runs},"
            f" temperature={temperature:g})"
        )
    if is_comparison(Path(folder)):
        raise ValueError(f"{folder}: a study is needed, but it is a comparison")
    rows, study = _finalists(read_leaderboard(folder)), StudyFolder(Path(folder))
    spec = load(study.spec)
    names = [name for name, task in spec.tasks.items() if task.kind.generates]
    if not rows or not names:
        what = "task generates texts" if rows else "row is confirmed yet"
        raise ValueError(f"{folder}: no {what}")
    prepared = prepare(spec.override(workers=workers), folder, address, say)
    with only_driver(study.path):
        outcomes = Outcomes(study.outcomes, spec.tasks, must_exist=True)
        items = {name: prepared.items["confirm"][name] for name in names}
        _check_items(items, outcomes)
        outcomes.bind(spec, prepared.items, prepared.weights)
        samplings = [Sampling(temperature=temperature, seed=seed + 1) for seed in range(runs)]
        recipes = [Recipe.from_dict(row.recipe or {}) for row in rows]
        _generate(prepared, outcomes, items, recipes, samplings, address, say)
        board = _publish(prepared, outcomes, tracking_uri, say)
    return next(one for one in board.sampled if one.temperature == temperature)


def _finalists(board: Leaderboard) -> list[Row]:
    """Return the rows to sample, each model once."""
    found: dict[str, Row] = {}
    for row in board.rows:
        is_last = row.role != "candidate" or row.label in (RECOMMENDED, FOUND)
        if row.recipe is not None and row.key is not None and is_last:
            found.setdefault(row.key, row)
    return list(found.values())


def _check_items(items: Mapping[str, Items], outcomes: Outcomes) -> None:
    """Raise ValueError if confirm items are others than those that were scored."""
    known = {one.task: one.digest for one in outcomes.bound() if one.split == "confirm"}
    for name, found in items.items():
        if found.digest != known[name]:
            raise ValueError(
                f"tasks.{name}: the items must be those that were searched with, but the data has"
                " changed"
            )


def _generate(
    prepared: Prepared,
    outcomes: Outcomes,
    items: Mapping[str, Items],
    recipes: list[Recipe],
    samplings: list[Sampling],
    address: str | None,
    say: Callable[[str], None],
) -> None:
    """Have workers generate the texts that are not on record."""
    from cabs_search.cluster import driver
    from cabs_search.search.sampled import SampledRuns

    source = SampledRuns(prepared.spec, outcomes, items, recipes, samplings)
    say(f"sampling {len(recipes)} models, {len(samplings)} runs of each")
    driver.search(
        source,
        {"confirm": items},
        cache_folder(),
        calibrations=prune_calibrated(prepared, [prepared.spec], say).files,
        weights=prepared.weights,
        address=address,
    )


def _publish(
    prepared: Prepared, outcomes: Outcomes, tracking_uri: str | None, say: Callable[[str], None]
) -> Leaderboard:
    """Write the study's page again, and what is new to MLflow, if it has the study's runs."""
    study, spec = StudyFolder(prepared.folder), prepared.spec
    scores = RecordScores.read(outcomes, spec)
    board = board_of(spec, scores)
    files = study_files(board, study.path, say)
    uri = given_uri(tracking_uri)
    if uri is None and study.tracking_address.is_file():
        uri = uri_of(study.path)
    if uri is not None or study.tracking_database.is_file():
        best = scores.searched.get(board.chosen.key or "") if board.chosen else None
        summary, _ = findings(prepared, board, best, files)
        with BackgroundTracker(study.path, uri, say) as tracker:
            tracker.study(spec).update(StudyId(outcomes.study_id()), summary)
    return board
