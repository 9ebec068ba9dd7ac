"""Rows that end before all confirm items are scored: fewer items, the same when killed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cabs_search.merging.recipe import make_recipe
from cabs_search.record.progress_file import Share
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import build_leaderboard
from cabs_search.results.optimism import optimism_of
from cabs_search.search.candidates import Candidates, ranked
from cabs_search.search.confirm_stage import ConfirmStage
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values
from tests.support.bench import Bench

TRIALS = 12
"""Candidates; a block holds all their search items."""


def spec_of(pico: Path, metric: str = "accuracy", top: int = 8, **search: Any) -> Spec:
    values = pico_values(pico, trials=TRIALS, block=20, confirm=top, **search)
    for task in values["tasks"].values():
        task |= {"search": {"items": 20}, "confirm": {"items": 80}, "metric": metric}
    return parse(values)


@pytest.fixture(scope="module")
def items(pico: Path) -> Any:
    return load_study_items(spec_of(pico))


@pytest.fixture(scope="module")
def searched(pico: Path, items: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder whose search has ended; the first rows are being confirmed."""
    folder = tmp_path_factory.mktemp("searched")
    bench = Bench(spec_of(pico), folder, items)
    bench.run(TRIALS + 2)
    assert len(bench.outcomes.scored("search")) == TRIALS
    return folder


def confirm(spec: Spec, items: Any, searched: Path, folder: Path, kills: Sequence[int]) -> Bench:
    """Confirm in a copy of a folder, killed after each number of blocks; nothing twice."""
    shutil.copytree(searched, folder, dirs_exist_ok=True)
    scored: list[tuple[str, str, int]] = []
    for blocks in (*kills, None):
        bench = Bench(spec, folder, items)
        bench.run(blocks)
        scored += bench.scored
    assert len(scored) == len(set(scored)), "something was scored twice"
    assert bench.study.is_finished
    bench.scored = scored
    return bench


def test_rows_end_early_and_those_of_the_verdict_do_not(
    pico: Path, items: Any, searched: Path, tmp_path: Path
) -> None:
    spec = spec_of(pico)
    bench = confirm(spec, items, searched, tmp_path / "early", ())
    whole = confirm(spec_of(pico, confirm_stops=False), items, searched, tmp_path / "whole", ())
    assert len(bench.scored) < 0.8 * len(whole.scored)
    shares = [one.study.stage_share for one in (bench, whole)]
    assert shares[1] == Share("item", 240 * len(whole.outcomes.scored("confirm")), shares[1].limit)
    assert shares[0].spent == shares[0].limit < 0.8 * shares[1].limit
    assert whole.outcomes.confirmation() is None
    board, of_all = (build_leaderboard(b.spec, b.outcomes) for b in (bench, whole))
    assert [row.label for row in board.rows] == [row.label for row in of_all.rows]
    scores = bench.outcomes.scored("search")
    best = ranked(Candidates.of(spec).best_shared(scores).values())[0].recipe.key
    items_of = {row.key: row.items for row in board.rows}
    assert items_of[best] == items_of[board.row("best found").key] == 240
    assert board.row("base").items == 60
    assert board.verdict.split(":")[0] == of_all.verdict.split(":")[0]
    text = leaderboard_text(board)
    assert "on items" in text
    assert "these rows on up to 240 confirm items" in text
    assert "rows ended early, which saved" in text
    assert "on items" not in leaderboard_text(of_all)
    assert board.tie_set is not None
    assert of_all.tie_set is not None
    assert set(of_all.tie_set.labels) <= set(board.tie_set.labels)
    for row, other in zip(board.rows, of_all.rows, strict=True):
        assert row.simultaneous[0] < other.score < row.simultaneous[1]
        assert row.tied == (row.label in board.tie_set.labels or row.key in _tied_keys(board))


def _tied_keys(board: Any) -> set[str | None]:
    return {board.row(label).key for label in board.tie_set.labels}


@pytest.mark.parametrize("kills", [(1, 3), (9, 20)])
def test_a_killed_confirmation_decides_the_same(
    pico: Path, items: Any, searched: Path, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    spec = spec_of(pico)
    once = confirm(spec, items, searched, tmp_path / "once", ())
    again = confirm(spec, items, searched, tmp_path / "again", kills)
    assert set(again.scored) == set(once.scored)
    decided = once.outcomes.confirmation()
    assert decided is not None
    assert decided.ended
    assert again.outcomes.confirmation() == decided
    boards = [build_leaderboard(spec, bench.outcomes) for bench in (once, again)]
    assert boards[0].rows == boards[1].rows


def test_a_metric_that_is_no_mean_has_all_items(pico: Path, items: Any, tmp_path: Path) -> None:
    bench = Bench(spec_of(pico, "matthews_correlation"), tmp_path, items)
    bench.run()
    assert bench.outcomes.confirmation() is None
    assert {scored.items for scored in bench.outcomes.scored("confirm").values()} == {240}


def test_what_is_recommended_has_a_row_and_what_was_made_of_it_is_seen_to_the_end(
    pico: Path,
) -> None:
    spec = spec_of(pico, top=1)
    shared, *_, best, start = Candidates.of(spec).baseline_recipes
    refined = make_recipe(start.method, dict.fromkeys(start.experts, 0.123))
    scores = {shared: 0.5, best: 0.9, start: 0.6, refined: 0.7}
    scored: Any = {
        r.key: SimpleNamespace(recipe=r, score=s, rank=s, objectives=(s,))
        for r, s in scores.items()
    }
    seen: Any = {}
    looks: Any = SimpleNamespace(start=lambda rows, stay: seen.update(rows=rows, stay=stay))
    outcomes: Any = SimpleNamespace(recommend=lambda *_: None)
    recommended: Any = SimpleNamespace(recipe=start)
    found = {key: one for key, one in scored.items() if key != refined.key}
    for levels, final in (([scored[refined.key]], refined), ([scored[refined.key], None], start)):
        stage = ConfirmStage(spec, Candidates.of(spec), outcomes, looks, (), "")
        stage.choose(found, recommended, levels)
        assert {start, best, refined} <= set(seen["rows"])
        assert seen["stay"][-1] == final
        assert len(seen["stay"]) == 2


def test_optimism_is_that_of_the_row() -> None:
    row: Any = SimpleNamespace(row_scores=lambda _: (0.65, {}), standard_error=lambda _: 0.01)
    scores: Any = SimpleNamespace(
        searched={"a": SimpleNamespace(score=0.7), "b": SimpleNamespace(score=0.8)},
        confirmed={"a": SimpleNamespace(score=0.9)},  # of its first items, which are easy
        panel=lambda *_: row,
    )
    found = optimism_of({}, 0, scores, row, "a")
    assert (found.search, found.confirm) == (0.7, 0.65)
    assert found.estimate == pytest.approx(0.05)


def test_the_clock_stands_still_until_there_are_workers(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("cabs_search.search.budget.time.monotonic", lambda: now[0])
    values = pico_values(pico, seconds=30)
    study = Bench(parse(values), tmp_path, items).study
    assert study.next_job("first") is not None
    study.put_back("first")
    now[0] = 1000.0
    jobs = [study.next_job(name) for name in "ab"]
    assert [job and job.split for job in jobs] == ["search", "search"]
