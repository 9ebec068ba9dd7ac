"""Candidates that are stopped early: fewer items, the same best, and nothing scored twice."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from cabs_search.merging.recipe import make_recipe
from cabs_search.record.entries import Expected
from cabs_search.results.leaderboard import build_leaderboard
from cabs_search.search.candidates import Candidates
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.known import Known
from cabs_search.search.proposals import Proposer
from cabs_search.search.pruners.race import ROUNDS, RacePruner
from cabs_search.search.pruners.registry import PRUNERS, check_pruner
from cabs_search.search.samplers.registry import check_sampler
from cabs_search.spec.load import parse
from cabs_search.spec.study import Search, Spec
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values
from tests.support.bench import Bench

BASELINES = {"task-arithmetic": {"lambda": [0.7, 0.0]}}
"""The second is worse than nearly all else."""


def spec_of(pico: Path, pruner: str | None) -> Spec:
    values = pico_values(pico, trials=24, block=4) | {"baselines": BASELINES}
    values["search"] |= {"sampler": "surface" if pruner == "surface" else "random"}
    values["search"] |= {"pruner": pruner} if pruner else {}
    for task in values["tasks"].values():
        task["search"] = {"items": 45}
    return parse(values)


@pytest.fixture(scope="module")
def items(pico: Path) -> Any:
    return load_study_items(spec_of(pico, None))


def searched(bench: Bench) -> list[tuple[str, str, int]]:
    return [scored for scored in bench.scored if scored[1] == "search"]


@pytest.fixture(scope="module")
def whole(pico: Path, items: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A search that scores all items of all candidates."""
    bench = Bench(spec_of(pico, None), tmp_path_factory.mktemp("whole"), items)
    bench.run()
    return bench


@pytest.mark.parametrize("pruner", PRUNERS)
def test_worse_candidates_stop_and_all_else_goes_on(
    pico: Path, items: Any, whole: Bench, tmp_path: Path, pruner: str
) -> None:
    spec = spec_of(pico, pruner)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    stopped = [f for f in bench.finished if f.state == "stopped"]
    assert stopped
    assert len(searched(bench)) < len(searched(whole))
    assert len(bench.scored) == len(set(bench.scored)), "no block is scored twice"
    assert len(bench.finished) == spec.search.trials, "the stopped count in the budget"
    pruned = [t for t in bench.trials() if t.state == TrialState.PRUNED]
    assert len(pruned) == len(stopped)
    board = build_leaderboard(spec, bench.outcomes)
    assert board.candidates == spec.search.trials - len(stopped), "only whole scores are ranked"
    spent = sum(f.items for f in bench.finished)
    assert board.spent.items["search"] == spent
    # a stopped one that is recommended at last is scored to the end
    left = {f.recipe.key for f in stopped} - bench.outcomes.scored("search").keys()
    assert any(f"{len(left)} candidates were not scored" in line for line in board.spent.text)
    baselines = {recipe.key for recipe in Candidates.of(spec).baseline_recipes}
    assert baselines <= bench.outcomes.scored("search").keys(), "a baseline is never stopped"
    for finished in stopped:
        assert finished.scored is None
        assert finished.partial_score is not None
        assert 0 < finished.items < sum(map(len, items["search"].values()))


def test_a_race_keeps_the_best(pico: Path, items: Any, whole: Bench, tmp_path: Path) -> None:
    bench = Bench(spec_of(pico, "race"), tmp_path, items)
    bench.run()
    assert bench.study.best is not None
    assert whole.study.best is not None
    assert bench.study.best.recipe.key == whole.study.best.recipe.key


def test_a_race_that_is_killed_goes_on_as_if_it_was_not(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    spec = spec_of(pico, "race")
    undisturbed = Bench(spec, tmp_path / "whole", items)
    undisturbed.run()
    scored: list[tuple[str, str, int]] = []
    for blocks in (3, 17, 41, None):
        bench = Bench(spec, tmp_path / "killed", items)
        bench.run(blocks)
        scored += bench.scored
    assert len(scored) == len(set(scored)), "no block is scored twice"
    trials = bench.trials()
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    assert len(trials) == len(bench.finished) == spec.search.trials, "the stopped count again"
    rounds = [
        t.user_attrs.get(ROUNDS) for t in bench.study._searching._proposer._study.get_trials()
    ]
    assert all(rounds[: len(trials) - 1]), "races go on against candidates of earlier runs"


def test_a_race_needs_metrics_that_are_means_and_a_known_name(pico: Path) -> None:
    spec = spec_of(pico, None)
    with pytest.raises(ValueError, match=r"search\.pruner: Input should be 'surface' or 'race'"):
        check_pruner(Search(pruner="races"), spec.tasks)
    with pytest.raises(ValueError, match="surface needs search.sampler: surface, but got 'tpe'"):
        check_pruner(Search(pruner="surface", sampler="tpe"), spec.tasks)
    values = pico_values(pico)
    values["tasks"] = {name: task | {"metric": "f1"} for name, task in values["tasks"].items()}
    with pytest.raises(ValueError, match="race needs metrics that are means over items, .* got f1"):
        check_pruner(Search(pruner="race"), parse(values).tasks)
    check_pruner(Search(pruner="race"), spec.tasks)
    awa = parse(pico_values(pico, sampler="awa", pruner="race"))
    with pytest.raises(ValueError, match="awa learns from candidates that are scored in full"):
        check_sampler(awa)


def test_a_race_of_scores_beyond_one_ends_with_a_line(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(spec_of(pico, "race"), tmp_path, items)
    score = bench.result

    def in_percent(job: Job, block: int) -> BlockResult:
        result = score(job, block)
        for outcome in result.outcomes.values():
            outcome.scores[:] *= 100
        return result

    monkeypatch.setattr(bench, "result", in_percent)
    bench.run()
    assert re.fullmatch(
        "search.pruner: race cannot compare these metrics: scores must be from 0 to 1, but got"
        r" \d+; take wilcoxon, asha or median",
        bench.study.failure or "",
    )


def test_tasks_on_the_same_texts_make_one_score_a_round(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    """Their items are not independent, and bets on each would count the same news twice."""
    spec = spec_of(pico, "race")
    mood = spec.tasks["mood"]
    twins = {name: replace(task, dataset=mood.dataset) for name, task in spec.tasks.items()}
    for tasks, columns in ((spec.tasks, 3), (twins, 1)):
        folder = tmp_path / str(columns)
        bench = Bench(replace(spec, tasks=tasks), folder, items)
        bench.run(blocks=60)
        rounds = [
            t.user_attrs.get(ROUNDS) for t in bench.study._searching._proposer._study.get_trials()
        ]
        assert {len(round_) for one in rounds if one for round_ in one} == {columns}


def test_nobody_loses_a_race_to_a_candidate_that_failed(pico: Path) -> None:
    proposer = Proposer(Candidates.of(spec_of(pico, "race")), "random", 0, RacePruner(24))
    failed, other = (proposer.propose().trial for _ in range(2))
    proposer.report(failed, Known(np.ones((100, 3))))
    proposer.report(other, Known(np.zeros((100, 3))))
    assert proposer.is_beaten(other)
    proposer.tell(failed, None)
    assert not proposer.is_beaten(other)


def test_races_compare_the_rounds_that_both_have() -> None:
    study = optuna.create_study(direction="maximize")
    random = np.random.default_rng(0)
    hard = random.random(400)
    for skill, rounds in ((0.9, 400), (0.2, 100), (0.85, 100)):
        trial = study.ask()
        scores = (hard[:, None] < skill).astype(float)
        scores[rounds:] = np.nan
        trial.set_user_attr(ROUNDS, scores.tolist())
    best, worst, near = study.get_trials()
    pruner = RacePruner(candidates=30)
    assert [pruner.prune(study, trial) for trial in (best, worst, near)] == [False, True, False]


def test_a_surface_recommends_what_it_predicts_best(pico: Path, items: Any, tmp_path: Path) -> None:
    """Bench scores candidates by their distance from λ = 0.8."""
    spec = spec_of(pico, "surface")
    spec = replace(spec, search=replace(spec.search, trials=45, block=15))
    bench = Bench(spec, tmp_path, items)
    bench.run()
    recommended = bench.outcomes.recommended()
    assert recommended is not None
    assert sum(abs(v - 0.8) for v in recommended.recipe.lambda_by_name.values()) < 1.0
    assert recommended.recipe.key in bench.outcomes.scored("search"), "it is scored in full"
    assert recommended.recipe.key in bench.outcomes.scored("confirm"), "and confirmed"
    board = build_leaderboard(spec, bench.outcomes)
    assert board.chosen is not None
    assert (board.chosen.label, board.chosen.key) == ("recommended", recommended.recipe.key)
    assert "recommended candidate" in board.verdict
    assert board.recommendation is not None
    assert len(board.recommendation.predictions) >= 1
    starts = {todo for key, split, todo in bench.scored if split == "search"}
    assert len(starts) == len(bench.study.blocks["search"]), "between them, all items are learned"


def test_a_recommended_candidate_that_is_killed_is_scored_in_full(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(pico, "surface")
    spec = replace(spec, search=replace(spec.search, trials=6))
    candidates = Candidates.of(spec)
    best = make_recipe(candidates.method("cabs"), dict.fromkeys(spec.experts, 0.8))
    bench = Bench(spec, tmp_path, items)
    score = bench.result

    def dying(job: Job, block: int) -> BlockResult:
        if job.recipe == best and block == 1:
            raise KeyboardInterrupt
        return score(job, block)

    monkeypatch.setattr(bench, "result", dying)
    expected = Expected(recipe=best, mean=0.9, deviation=0.1)
    monkeypatch.setattr(bench.study._searching._proposer, "recommend", lambda: expected)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    again = Bench(spec, tmp_path, items).study.next_job("a")
    assert again is not None
    assert again.recipe == best
    count = len(bench.study.blocks["search"])
    assert again.todo == tuple(range(1, count)), "without a look, at which it may be stopped"


def test_a_surface_that_is_killed_scores_nothing_twice(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    """The space ends before the budget; what is recommended was stopped and goes on to the end."""
    values = spec_of(pico, "surface").as_dict()
    values["space"] = {
        "method": "task-arithmetic",
        "lambda": {"low": 0.4, "high": 1.2, "step": 0.4},
    }
    values["search"] |= {"trials": 60, "block": 15}
    spec = parse(values)
    scored: list[tuple[str, str, int]] = []
    for blocks in (7, 21, 5, 1, 1, 1, 1, 1, None):
        bench = Bench(spec, tmp_path, items)
        bench.run(blocks)
        scored += bench.scored
    assert len(scored) == len(set(scored)), "no block is scored twice"
    assert not [t for t in bench.trials() if t.state == TrialState.RUNNING]
    again = Bench(spec, tmp_path, items)
    stopped = {f.recipe.key for f in bench.finished if f.state == "stopped"}
    assert stopped & bench.outcomes.scored("search").keys(), "the best of the space goes on"
    assert again.study.done == len(bench.finished) < spec.search.trials
    assert [f.items for f in again.finished] == [f.items for f in bench.finished]
    assert {f.items for f in again.finished if f.state == "stopped"} == {45}, "one block"
    board = build_leaderboard(spec, bench.outcomes)
    assert sum(f.items for f in again.finished) == board.spent.items["search"]
    found = bench.outcomes.recommended()
    assert found is not None
    assert again.study._searching._proposer.recommend(only_scored=True) == found, (
        "it depends on scores alone"
    )


def test_a_recommended_candidate_that_fails_is_not_recommended_again(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    spec = spec_of(pico, "surface")
    spec = replace(spec, search=replace(spec.search, block=15))
    for blocks in (18, 0):
        bench = Bench(spec, tmp_path, items)
        bench.run(blocks)
    stopped = next(f.recipe for f in bench.finished if f.state == "stopped")
    bench.study._due.whole.add(stopped.key)
    bench.study._searching._proposer.enqueue(stopped)
    for number in map(str, range(9)):  # those that were interrupted come first
        job = bench.study.next_job(number)
        assert job is not None
        if job.recipe == stopped:
            break
    assert len(job.todo) == 2, "to the end"
    bench.study.finish(number, "out of memory")
    assert not bench.study._searching.ended.is_stopped(stopped.key)
    again = Bench(spec, tmp_path, items)
    again.run()
    assert again.study.failure is None
    assert stopped.key not in again.outcomes.scored("search")


@pytest.mark.parametrize("lambdas", [{"low": 0.8, "high": 0.8}, {"low": 0.8, "high": 1.0}])
def test_the_only_candidates_of_a_small_space_are_scored_in_full(
    pico: Path, items: Any, tmp_path: Path, lambdas: dict[str, float]
) -> None:
    values = spec_of(pico, "surface").as_dict()
    values["space"] = {
        "method": "task-arithmetic",
        "lambda": lambdas | {"step": 0.2, "shared": True},
    }
    values["baselines"], values["search"]["block"] = {}, 15
    bench = Bench(parse(values), tmp_path, items)
    bench.run()
    assert bench.study.chosen is not None
    assert list(bench.study.chosen.recipe.lambda_by_name.values()) == [0.8] * 3
