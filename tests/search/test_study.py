"""Search without Ray: budgets, duplicates, crashes, failures. Scores are a function of λ."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from cabs_search.kinds.base import Outcome
from cabs_search.merging.recipe import Recipe
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import SEARCHING, Outcomes
from cabs_search.record.progress_file import Share
from cabs_search.results.leaderboard import build_leaderboard
from cabs_search.search import space
from cabs_search.search.budget import RECOMMENDED
from cabs_search.search.candidates import Candidates, ranked, reference_recipes
from cabs_search.search.confirm_stage import rows_to_confirm
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.samplers import awa, surface
from cabs_search.search.storage import is_recommended, recipe_key_of_trial
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values
from tests.support.bench import Bench
from tests.support.disk import small_files


@pytest.fixture(scope="module")
def spec(pico: Path) -> Spec:
    return parse(pico_values(pico, trials=12))


@pytest.fixture(scope="module")
def items(spec: Spec) -> Any:
    return load_study_items(spec)


def test_a_search_ends_with_the_budget_and_the_rows_confirmed(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    bench = Bench(spec, tmp_path, items)
    bench.run()
    searched, confirmed = (bench.outcomes.scored(split) for split in ("search", "confirm"))
    assert len(searched) == 12
    assert {r.key for r in reference_recipes(spec.experts).values()} <= confirmed.keys()
    rows = rows_to_confirm(Candidates.of(spec), searched, spec.search.confirm)
    assert {row.key for row in rows} <= confirmed.keys()
    best = max(searched.values(), key=lambda s: s.score)
    assert bench.study.best is not None
    assert bench.study.best.score == best.score
    told = [t.value for t in bench.trials() if t.state == TrialState.COMPLETE]
    assert sorted(told) == pytest.approx(sorted(s.score for s in searched.values()))
    assert len(bench.scored) == len(set(bench.scored))


def test_rows_are_tested_against_what_search_scores_chose(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    """The best baseline and the best found are fixed before the confirm split is looked at."""
    values = pico_values(pico, trials=12)
    values["baselines"] = {"task-arithmetic": {"lambda": [0.3]}, "cabs": {"lambda": [1.0]}}
    spec = parse(values)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    board = build_leaderboard(spec, bench.outcomes)
    baselines_by_score = sorted(
        (r for r in board.rows if r.role == "baseline"), key=lambda r: r.search_score or 0
    )
    assert board.baseline == baselines_by_score[-1].label
    assert baselines_by_score[0].search_score != baselines_by_score[-1].search_score
    assert board.row("best found").search_score == max(tried.score for tried in board.tried)
    for row in board.rows:
        if row.role in ("baseline", "candidate"):
            keys = {
                "best baseline": board.row(board.baseline).key,
                "best found": board.row("best found").key,
            }
            assert set(row.against) == {name for name, key in keys.items() if key != row.key}


def test_the_record_knows_which_items_stand_together(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    clusters = Bench(spec, tmp_path, items).outcomes.clusters("confirm")
    for task, found in clusters.items():
        groups = items["confirm"][task].groups
        assert len(found) == len(groups) == len(items["confirm"][task])
        assert [[a == b for b in groups] for a in groups] == [
            [a == b for b in found] for a in found
        ]


def test_baselines_come_first(spec: Spec, items: Any, tmp_path: Path) -> None:
    bench = Bench(spec, tmp_path, items)
    jobs = [bench.study.next_job(str(i)) for i in range(4)]
    assert [str(job.recipe) for job in jobs if isinstance(job, Job)] == [
        "task-arithmetic λ=0.5",
        "task-arithmetic λ=1",
        "cabs 2:8 mood>animal>pair λ=1",
        "cabs 2:8 mood>animal>pair λ=1.5",
    ]


@pytest.mark.parametrize("stops", [(1,), (2, 5), (7, 1, 3), (1, 1, 1, 1), (20, 20, 20)])
def test_a_killed_search_goes_on(
    spec: Spec, items: Any, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    scored: list[tuple[str, str, int]] = []
    for blocks in stops:
        bench = Bench(spec, tmp_path, items)
        bench.run(blocks)
        scored += bench.scored
    last = Bench(spec, tmp_path, items)
    last.run()
    scored += last.scored
    assert len(scored) == len(set(scored)), "something was scored twice"
    assert not [t for t in last.trials() if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    searched = last.outcomes.scored("search")
    assert len(searched) == 12
    numbers = [f.number for f in last.finished]
    assert len(numbers) == len(set(numbers)) == 12, "the last driver is told every candidate once"
    assert {f.recipe.key for f in last.finished} == searched.keys()


def test_a_candidate_interrupted_between_its_last_block_and_its_end(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    bench = Bench(spec, tmp_path, items)
    job = bench.study.next_job("a")
    assert isinstance(job, Job)
    for block in job.todo:
        bench.study.record([("a", bench.result(job, block))])
    again = Bench(spec, tmp_path, items)
    again.run()
    assert (job.recipe.key, "search", 0) not in again.scored
    assert job.recipe.key in {f.recipe.key for f in again.finished if f.state == "complete"}


def test_a_known_candidate_is_not_scored_again(pico: Path, items: Any, tmp_path: Path) -> None:
    """A space of 4 candidates is searched through, and the search ends before its budget."""
    values = pico_values(pico, trials=50)
    values["space"] = {
        "nm": ["2:8"],
        "lambda": {"low": 0.5, "high": 2.0, "step": 0.5, "shared": True},
    }
    spec = parse(values)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    assert bench.study.exhausted
    assert (
        bench.study.done == 6
    )  # 4 of the space, of which 1 and 1.5 are baselines, and 2 of task arithmetic
    assert len(bench.scored) == len(set(bench.scored))


@pytest.mark.parametrize("pruner", [None, "race"])
def test_one_merged_model_is_scored_once(
    pico: Path, items: Any, tmp_path: Path, pruner: str | None
) -> None:
    """λ = 0 removes a vector, and what then is the same sum gets the same score."""
    values = pico_values(pico, trials=200, sampler="grid", pruner=pruner)
    values["space"] = {
        "nm": ["2:8"],
        "order": "all",
        "lambda": {"low": 0.0, "high": 1.0, "step": 1.0},
    }
    spec = parse(values)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    baselines = {recipe.key for recipe in Candidates.of(spec).baseline_recipes}
    sums = [f.recipe.sum_key for f in bench.finished if f.recipe.key not in baselines]
    # the base, 3 vectors behind 5 ordered sets of others, 3 pairs and all three in 6 orders each,
    # but the baseline's order is known
    assert len(sums) == len(set(sums)) == 1 + 3 * 5 + 4 * 6 - 1
    sampled = bench.study._searching._proposer._study.get_trials()
    told = [t for t in sampled if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.params]
    assert len(told) >= 8 * 6, "all points of the space"
    by_sum: dict[str, set[float | None]] = {}
    for trial in told:
        recipe = space.suggest(Candidates.of(spec), optuna.trial.FixedTrial(trial.params))
        by_sum.setdefault(recipe.sum_key, set()).add(trial.value)
    assert {len(scores) for scores in by_sum.values()} == {1}


def test_a_failed_candidate_is_failed_and_never_scored(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    bench = Bench(spec, tmp_path, items)
    job = bench.study.next_job("a")
    assert isinstance(job, Job)
    bench.study.finish("a", "ValueError: the loss on mood is not finite")
    bench.run()
    failed = [f for f in bench.finished if f.state == "failed"]
    assert [f.recipe for f in failed] == [job.recipe]
    assert failed[0].error == "ValueError: the loss on mood is not finite"
    assert failed[0].scored is None
    assert [t.value for t in bench.trials() if t.state == TrialState.FAIL] == [None]
    assert bench.study.done == 12
    assert len(bench.outcomes.scored("search")) == 11


def test_a_dead_workers_job_goes_to_another_behind_what_is_recorded(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    bench = Bench(spec, tmp_path, items)
    job = bench.study.next_job("a")
    assert isinstance(job, Job)
    bench.study.record([("a", bench.result(job, job.todo[0]))])
    bench.study.job_lost("a")
    again = bench.study.next_job("b")
    assert again == Job(recipe=job.recipe, split="search", todo=job.todo[1:], alone=True)
    for block in again.todo:
        bench.study.record([("b", bench.result(again, block))])
    bench.study.job_lost("b")  # after its last block
    bench.run()
    assert len(bench.scored) == len(set(bench.scored))
    assert [f.state for f in bench.finished] == ["complete"] * 12


def test_a_candidate_that_kills_its_workers_has_failed(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    bench = Bench(spec, tmp_path, items)
    recipes = []
    for i in range(4):
        job = bench.study.next_job(str(i))
        assert isinstance(job, Job)
        recipes.append(job.recipe)
        bench.study.job_lost(str(i))
    assert len(set(recipes)) == 1
    bench.run()
    failed = [f for f in bench.finished if f.state == "failed"]
    assert [(f.recipe, f.error) for f in failed] == [(recipes[0], "its worker died 4 times")]


@pytest.fixture
def parts(pico: Path, items: Any, tmp_path: Path) -> tuple[Bench, list[Job]]:
    """Return a search of one candidate beside four rows, and the six parts of it."""
    values = pico_values(pico, trials=1, sampler="random", block=2) | {"baselines": {}}
    bench = Bench(parse(values), tmp_path, items)
    bench.study.workers = 30
    given = {str(number): bench.study.next_job(str(number)) for number in range(10)}
    assert bench.study.next_job("10") is None
    for job_id, job in given.items():
        assert job is not None
        if job.split == "confirm":
            score(bench, job_id, job)
    return bench, [job for job in given.values() if job is not None and job.split == "search"]


def score(bench: Bench, job_id: str, job: Job) -> None:
    bench.study.record([(job_id, bench.result(job, block)) for block in job.todo])
    bench.study.finish(job_id)


def test_parts_of_a_job_end_together(parts: tuple[Bench, list[Job]]) -> None:
    bench, jobs = parts
    assert len({job.recipe.key for job in jobs}) == 1
    assert [job.todo for job in jobs] == [(2 * part, 2 * part + 1) for part in range(6)]
    for number in (1, 0, 5, 3, 2):
        score(bench, str(number), jobs[number])
        assert not bench.finished
    assert bench.study.budget == 1
    assert bench.study.shares == [Share("candidate", 0, 1)]
    score(bench, "4", jobs[4])
    assert [(f.state, f.items) for f in bench.finished] == [("complete", 24 * 3)]


def test_a_part_whose_worker_died_goes_to_another(parts: tuple[Bench, list[Job]]) -> None:
    bench, jobs = parts
    bench.study.record([("1", bench.result(jobs[1], 2))])
    bench.study.job_lost("1")
    again = bench.study.next_job("10")
    assert again == Job(recipe=jobs[1].recipe, split="search", todo=(3,), alone=True)
    for job_id, job in {"10": again, "0": jobs[0], "2": jobs[2], "3": jobs[3]}.items():
        score(bench, job_id, job)
    score(bench, "4", jobs[4])
    assert not bench.finished
    score(bench, "5", jobs[5])
    assert [f.state for f in bench.finished] == ["complete"]
    assert len(bench.scored) == len(set(bench.scored))


def test_a_node_that_is_lost_with_all_parts_fails_nothing(parts: tuple[Bench, list[Job]]) -> None:
    bench, jobs = parts
    for number in range(6):
        bench.study.job_lost(str(number))
    again = [bench.study.next_job(str(number)) for number in range(10, 16)]
    assert again == [replace(job, alone=True) for job in jobs]
    for number, job in enumerate(jobs, 10):
        assert not bench.finished
        score(bench, str(number), job)
    assert [f.state for f in bench.finished] == ["complete"]


def test_a_job_that_is_put_back_whole_is_shared_then(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    values = pico_values(pico, trials=1, sampler="random", block=2) | {"baselines": {}}
    bench = Bench(parse(values), tmp_path, items)
    whole = bench.study.next_job("first")  # before there are workers
    assert whole is not None
    bench.study.put_back("first")
    bench.study.workers = 30
    given = [bench.study.next_job(str(number)) for number in range(6)]
    assert [job.todo for job in given if job] == [(2 * part, 2 * part + 1) for part in range(6)]
    assert {job.recipe.key for job in given if job} == {whole.recipe.key}


def test_a_part_that_fails_fails_its_candidate_once(parts: tuple[Bench, list[Job]]) -> None:
    bench, jobs = parts
    bench.study.job_lost("1")
    bench.study.finish("0", "MemoryError: no room")
    for number in range(2, 6):
        score(bench, str(number), jobs[number])
    assert not bench.finished, "a part waits"
    bench.run()
    assert [(f.state, f.error) for f in bench.finished] == [("failed", "MemoryError: no room")]
    scored = {block for _, split, block in bench.scored if split == "search"}
    assert not scored & {*jobs[0].todo, *jobs[1].todo}, "the part that waited was scored"


def test_a_search_that_stops_between_parts_is_resumed(parts: tuple[Bench, list[Job]]) -> None:
    bench, jobs = parts
    bench.study.job_lost("1")
    bench.study.stop("for a test")
    bench.study.release()
    for number in (0, 2, 3, 4, 5):
        score(bench, str(number), jobs[number])
    assert not bench.finished
    again = Bench(bench.spec, bench.folder, bench.items)
    again.run()
    assert [f.state for f in again.finished] == ["complete"]
    assert {block for _, split, block in again.scored if split == "search"} == set(jobs[1].todo)


def test_a_search_of_failures_gives_up(spec: Spec, items: Any, tmp_path: Path) -> None:
    bench = Bench(spec, tmp_path, items)
    bench.run(fail="MemoryError: no room")
    assert bench.study.failure == "3 candidates in a row failed, the last one: MemoryError: no room"
    assert bench.study.done <= 4, "two were at work"


def test_another_study_in_the_folder_is_refused(
    pico: Path, spec: Spec, items: Any, tmp_path: Path
) -> None:
    Bench(spec, tmp_path, items)
    values = pico_values(pico, trials=12, block=9)
    with pytest.raises(ValueError, match=r"holds another study \(search.block differs\)"):
        Bench(parse(values), tmp_path, items)
    with pytest.raises(ValueError, match=r"holds another study \(weights of base differs\)"):
        Outcomes(tmp_path / "outcomes", spec.tasks).bind(spec, items, {"base": "other"})


def test_params_and_recipes_agree(spec: Spec) -> None:
    """Parameters are computed from a recipe, so that an interrupted candidate can be queued."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        trial = study.ask()
        recipe = space.suggest(Candidates.of(spec), trial)
        assert space.params_of(Candidates.of(spec), recipe) == pytest.approx(trial.params)


def test_the_space_is_counted(pico: Path) -> None:
    assert space.size(Candidates.of(parse(pico_values(pico)))) == 21**3 * 2 * 6


def test_a_shared_database_keeps_two_studies_of_one_name_apart(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    spec = parse(pico_values(pico, trials=12, storage=f"sqlite:///{tmp_path / 'shared.db'}"))
    Bench(spec, tmp_path / "one", items).run(blocks=2)
    with pytest.raises(ValueError, match="the study 'pico' there belongs to another record"):
        Bench(spec, tmp_path / "two", items)


def test_a_lost_study_is_rebuilt_from_the_record(spec: Spec, items: Any, tmp_path: Path) -> None:
    first = Bench(spec, tmp_path, items)
    first.run()
    (tmp_path / "study.db").unlink()
    again = Bench(spec, tmp_path, items)
    again.run()
    assert not {r.key for r in Candidates.of(spec).baseline_recipes} & {
        key for key, _, _ in again.scored
    }, "what is on record is not scored again"


def test_the_sampler_sees_baselines_and_resumed_candidates(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    Bench(spec, tmp_path, items).run(blocks=17)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    for trial in bench.trials():
        if trial.state == TrialState.COMPLETE:
            recipe = Recipe.from_dict(json.loads(trial.user_attrs["recipe"]))
            assert trial.params == pytest.approx(space.params_of(Candidates.of(spec), recipe) or {})


def test_ties_do_not_depend_on_which_ended_first(spec: Spec, items: Any, tmp_path: Path) -> None:
    """The rows that are confirmed are the rows that are reported, also where scores are equal."""
    bench = Bench(spec, tmp_path, items)
    bench.result_ = bench.result  # type: ignore[attr-defined]

    def equal(job: Job, block: int) -> BlockResult:
        found = bench.result_(job, block)  # type: ignore[attr-defined]
        labels = {
            t: items[job.split][t].labels[rows]
            for t, rows in bench.study.blocks[job.split][block].items()
        }
        same = {
            t: Outcome(np.ones_like(o.scores), o.losses, labels[t])
            for t, o in found.outcomes.items()
        }
        return replace(found, outcomes=same)

    bench.result = equal  # type: ignore[method-assign]
    bench.run()
    rows = build_leaderboard(spec, bench.outcomes).rows
    wanted = {"best shared-λ task-arithmetic", "best shared-λ cabs", "best found"}
    assert wanted <= {row.label for row in rows}
    scored = list(bench.outcomes.scored("search").values())
    assert {s.recipe.key for s in ranked(scored)[: spec.search.confirm]} <= {r.key for r in rows}
    keys = [row.key for row in rows if row.label != "best found"]
    assert len(keys) == len(set(keys)), "a baseline has one row"
    assert ranked(scored) != scored
    assert [s.recipe for s in ranked(scored)] == [s.recipe for s in ranked(scored[::-1])]


def test_a_kill_between_an_error_and_its_end(spec: Spec, items: Any, tmp_path: Path) -> None:
    bench = Bench(spec, tmp_path, items)
    job = bench.study.next_job("a")
    assert isinstance(job, Job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bench.study._database._storage,
            "set_trial_state_values",
            lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            bench.study.finish("a", "ValueError: no")
    again = Bench(spec, tmp_path, items)
    again.run()
    assert [f.recipe for f in again.finished if f.state == "failed"] == [job.recipe]
    assert again.study.done == 12
    assert len(again.outcomes.scored("search")) == 11


@pytest.mark.parametrize(
    "at", ["create_new_trial", "set_trial_user_attr", "set_trial_state_values", "record"]
)
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("count", [1, 4])
def test_a_kill_before_or_after_any_write(
    spec: Spec, items: Any, tmp_path: Path, at: str, after: bool, count: int
) -> None:
    calls = {"left": count}

    def dying(act: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls["left"] -= 1
            if calls["left"] == 0 and not after:
                raise KeyboardInterrupt
            found = act(*arguments, **named)
            if calls["left"] == 0:
                raise KeyboardInterrupt
            return found

        return call

    scored: list[tuple[str, str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        home = Outcomes if at == "record" else optuna.storages.RDBStorage
        patch.setattr(home, at, dying(getattr(home, at)))
        with pytest.raises(KeyboardInterrupt):
            bench = None
            bench = Bench(spec, tmp_path, items)
            bench.run()
        scored += [] if bench is None else bench.scored
    last = Bench(spec, tmp_path, items)
    last.run()
    lost = 1 if at == "record" and not after else 0  # that block was scored, and could not be kept
    assert len(scored + last.scored) - len(set(scored + last.scored)) <= lost
    assert not [t for t in last.trials() if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert len(last.outcomes.scored("search")) == 12
    assert len({f.number for f in last.finished}) == len(last.finished) == 12


def test_a_worker_that_cannot_start_costs_no_candidate(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    bench = Bench(spec, tmp_path, items)
    bench.study.next_job("a")
    bench.study.stop("a worker could not start: OutOfMemoryError: no room")
    assert bench.study.next_job("b") is None
    assert bench.study.is_finished
    assert bench.study.failure is not None
    again = Bench(spec, tmp_path, items)
    again.run()
    assert [f.state for f in again.finished] == ["complete"] * 12


def test_a_space_of_other_values_is_refused(
    pico: Path, spec: Spec, items: Any, tmp_path: Path
) -> None:
    Bench(spec, tmp_path, items).run()
    values = pico_values(pico, trials=20)
    values["space"]["nm"] = ["2:8", "4:8"]
    with pytest.raises(
        ValueError, match="space.nm: must stay as it was when the study in study.db began"
    ):
        Bench(parse(values), tmp_path, items)


def test_a_task_scored_by_another_head_is_another_study(
    pico: Path, spec: Spec, items: Any, tmp_path: Path
) -> None:
    Bench(spec, tmp_path, items)
    values = pico_values(pico, trials=12)
    values["tasks"]["mood"]["expert"] = "pair"
    with pytest.raises(ValueError, match=r"tasks.mood.expert differs"):
        Bench(parse(values), tmp_path, items)


def test_an_error_of_the_database_shows_no_password(pico: Path, items: Any, tmp_path: Path) -> None:
    spec = parse(pico_values(pico, storage="postgresql+nodriver://me:hunter2@127.0.0.1:1/x"))
    with pytest.raises(ValueError, match="the study cannot be opened") as raised:
        Bench(spec, tmp_path, items)
    assert "hunter2" not in str(raised.value)


def test_a_folder_keeps_its_database_whatever_the_environment_says(
    spec: Spec, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(spec, tmp_path / "a", items)
    bench.run(blocks=8)
    bench.study.close()
    monkeypatch.setenv("CABS_SEARCH_STORAGE", f"sqlite:///{tmp_path}/other.db")
    again = Bench(spec, tmp_path / "a", items)
    assert len(again.trials()) == len(bench.trials())
    other = Bench(spec, tmp_path / "b", items)  # the environment's: a study of the same name
    other.run(blocks=8)
    other.study.close()
    assert not (tmp_path / "b" / "study.db").exists()
    known = recipe_key_of_trial(
        tmp_path / "b", None, spec.name, StudyId(other.outcomes.study_id()), "0"
    )
    assert known in other.outcomes.scored("search")
    with pytest.raises(ValueError, match="belongs to another record"):
        recipe_key_of_trial(tmp_path / "c", None, spec.name, StudyId("x"), "0")


def test_a_setting_that_is_given_or_left_out_later_is_refused(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    values = pico_values(pico, trials=4)
    Bench(parse(values), tmp_path / "without", items).study.close()
    values["space"]["gamma"] = 0.02
    Bench(parse(values), tmp_path / "with", items).study.close()
    with pytest.raises(ValueError, match=r"space.gamma: .*not given.*, but got 0.02"):
        Bench(parse(values), tmp_path / "without", items)
    del values["space"]["gamma"]
    with pytest.raises(ValueError, match=r"space.gamma: .*0.02.*, but got none"):
        Bench(parse(values), tmp_path / "with", items)


def test_anchors_stay_as_they_were(pico: Path, items: Any, tmp_path: Path) -> None:
    values = pico_values(pico, trials=4)
    Bench(parse(values), tmp_path / "without", items).study.close()
    values["space"]["lambda"] |= {"anchors": 2, "layers": 2}
    Bench(parse(values), tmp_path / "with", items).study.close()
    with pytest.raises(ValueError, match=r"space.lambda.anchors: .*not given.*, but got 2"):
        Bench(parse(values), tmp_path / "without", items)
    del values["space"]["lambda"]["anchors"], values["space"]["lambda"]["layers"]
    with pytest.raises(ValueError, match=r"space.lambda.anchors: .*\(2\).*, but got none"):
        Bench(parse(values), tmp_path / "with", items)


@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_search_over_anchors_goes_on(
    pico: Path, items: Any, tmp_path: Path, shared: bool
) -> None:
    """With the surface: it proposes and recommends by anchors, and equal models are one."""
    values = pico_values(pico, trials=14, sampler="surface")
    values["space"] = {
        "method": ["magnitude", "dare"],
        "lambda": {"low": 0, "high": 1, "step": 0.5, "anchors": 2, "layers": 2, "shared": shared},
    }
    spec = parse(values)
    Bench(spec, tmp_path, items).run(20)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    candidates = Candidates.of(spec)
    proposed = [f.recipe for f in bench.finished if not candidates.is_baseline(f.recipe)]
    assert len(bench.finished) == 14
    assert max(len(recipe.lambdas) for recipe in proposed) == 6
    params = {name for trial in bench.trials() for name in trial.params}
    names = {"lambda.1", "lambda.2"} if shared else {f"lambda.{k}" for k in candidates.lambda_keys}
    assert params == {"method", *names}
    by_layers = [
        tuple(r.lambda_of(e, f"encoder.layer.{n}.weight") for e in r.experts for n in (0, 1))
        for r in proposed
    ]
    models = {(r.method, v) for r, v in zip(proposed, by_layers, strict=True)}
    assert len(models) == len({recipe.key for recipe in proposed}), "equal models are one candidate"
    chosen = bench.study.chosen
    assert chosen is not None
    assert space.params_of(candidates, chosen.recipe) is not None


def test_a_full_disk_ends_a_search_that_goes_on(spec: Spec, items: Any, tmp_path: Path) -> None:
    bench = Bench(spec, tmp_path, items)
    bench.run(blocks=8)
    with small_files(4096):
        with pytest.raises(RuntimeError, match=r"outcomes.sqlite: cannot be written: .*goes on$"):
            bench.outcomes.keep_text("a note", "x" * 10_000)
        with pytest.raises(RuntimeError, match=r"(study.db|outcomes.sqlite): cannot be written: "):
            bench.run()
    bench.study.close()
    last = Bench(spec, tmp_path, items)
    last.run()
    assert last.study.is_finished
    assert len(last.outcomes.scored("search")) == 12


def test_a_lowered_budget_leaves_no_trial_running(pico: Path, items: Any, tmp_path: Path) -> None:
    """Two candidates were being scored when the driver was killed; then there is no room."""
    spec = parse(pico_values(pico, block=4))
    bench = Bench(spec, tmp_path, items)
    bench.run(31)
    assert sum(t.state.name == "RUNNING" for t in bench.trials()) == 2
    done = bench.study.done
    lowered = Bench(replace(spec, search=replace(spec.search, trials=done)), tmp_path, items)
    lowered.run()
    assert lowered.study.done == done
    assert all(t.state.is_finished() for t in lowered.trials())
    raised = Bench(spec, tmp_path, items)
    raised.run()
    assert raised.study.done == spec.search.trials


@pytest.mark.parametrize("kill_after", [(), (5, 9)])
def test_a_budget_of_items_is_spent_over_all_runs(
    pico: Path, items: Any, tmp_path: Path, kill_after: tuple[int, ...]
) -> None:
    """A candidate has 72 items: the seventh begins with some left, and is finished."""
    values = pico_values(pico, items=6 * 72 + 1)
    del values["search"]["trials"]
    spec = parse(values)
    for blocks in (*kill_after, None):
        bench = Bench(spec, tmp_path, items)
        bench.run(blocks)
    assert bench.study.done == len(bench.outcomes.scored("search")) == 7
    assert bench.study.shares == [Share("item", 6 * 72 + 1, 6 * 72 + 1)]
    more = replace(spec, search=replace(spec.search, trials=9, items=100 * 72))
    bench = Bench(more, tmp_path, items)
    bench.run()
    assert bench.study.done == 9, "the first limit counts"
    assert bench.study.shares == [Share("candidate", 9, 9), Share("item", 9 * 72, 100 * 72)]


def test_a_budget_of_seconds_is_spent_over_all_runs(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block takes 0.3 s of a worker, of which there are two, and a candidate has 3 blocks."""
    clock = [100.0]
    monkeypatch.setattr("cabs_search.search.budget.time.monotonic", lambda: clock[0])
    values = pico_values(pico, seconds=9)
    del values["search"]["trials"]
    for blocks in (7, 12, None):
        bench = Bench(parse(values), tmp_path, items)
        score = bench.result

        def tick(job: Job, block: int, score: Any = score) -> BlockResult:
            clock[0] += 0.15
            return score(job, block)

        monkeypatch.setattr(bench, "result", tick)
        bench.run(blocks)
        clock[0] += 1000  # between two runs nothing is searched
    assert bench.study.shares[0].spent == 9
    assert 9 <= bench.outcomes.amount(SEARCHING) < 11, "the last ones are finished"
    assert 9 / 0.45 <= bench.study.done <= 9 / 0.45 + 2
    assert not any(name.startswith("searching") for name in bench.outcomes.spent())


@pytest.mark.parametrize("fails", [False, True])
def test_seconds_that_end_at_the_first_blocks_still_recommend(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    values = pico_values(pico, sampler="surface", pruner="surface", seconds=5)
    del values["search"]["trials"]
    values["baselines"] = {}
    clock = [0.0]
    monkeypatch.setattr("cabs_search.search.budget.time.monotonic", lambda: clock[0])
    bench = Bench(parse(values), tmp_path, items)
    score = bench.result

    def tick(job: Job, block: int) -> BlockResult:
        clock[0] += 10
        return score(job, block)

    monkeypatch.setattr(bench, "result", tick)
    if fails:
        job = bench.study.next_job("first")
        assert job is not None
        bench.study.finish("first", "MemoryError: no room")
    bench.run()
    assert [one.state for one in bench.finished].count("complete") == 1
    assert bench.study.chosen is not None
    assert build_leaderboard(bench.spec, bench.outcomes).recommendation is not None


@pytest.mark.parametrize("kill_after", [(), (9, 20, 1, 1)])
def test_a_search_that_can_gain_nothing_ends_before_its_budget(
    pico: Path,
    items: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_after: tuple[int, ...],
) -> None:
    monkeypatch.setattr(surface._Improvement, "possible", lambda *_: -1.0)
    values = pico_values(pico, sampler="surface", pruner="surface", trials=60)
    for blocks in (*kill_after, None):
        bench = Bench(parse(values), tmp_path, items)
        bench.run(blocks)
    assert bench.study.converged
    assert 16 < bench.study.done < 60
    recommended = [trial for trial in bench.trials() if is_recommended(trial)]
    assert 1 <= len(recommended) <= RECOMMENDED
    board = build_leaderboard(bench.spec, bench.outcomes)
    assert board.recommendation is not None
    assert "The search ended early: what could still be gained" in " ".join(board.spent.text)
    again = Bench(parse(values), tmp_path, items)
    again.run()
    assert (again.study.converged, again.scored) == (True, [])
    wider = copy.deepcopy(values)
    wider["space"]["lambda"]["high"] = 2.2
    assert not Bench(parse(wider), tmp_path, items).study.converged, "there is more to find"
    values["search"]["stops"] = False
    on = Bench(parse(values), tmp_path, items)
    on.run()
    assert (on.study.converged, on.study.done) == (False, 60)
    board = build_leaderboard(on.spec, on.outcomes)
    assert "ended early: what" not in " ".join(board.spent.text)


def test_what_has_converged_is_a_sampler_s_and_of_its_ranges(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface._Improvement, "possible", lambda *_: -1.0)
    values = pico_values(pico, sampler="surface", pruner="surface", trials=60)
    values["space"]["method"] = ["cabs", "ties"]
    ranges = {"ties": {"low": 0.0, "high": 1.0, "step": 0.1}}
    values["space"]["lambda"]["methods"] = ranges
    first = Bench(parse(values), tmp_path, items)
    first.run()
    assert first.study.converged
    for field in ("low", "high"):
        folder, other = tmp_path.with_name(f"{tmp_path.name} {field}"), copy.deepcopy(values)
        shutil.copytree(tmp_path, folder)
        other["space"]["lambda"]["methods"]["ties"][field] = 0.5
        assert not Bench(parse(other), folder, items).study.converged, "of one method alone"
    assert Bench(parse(values), tmp_path, items).study.converged
    values["search"] |= {"sampler": "tpe", "pruner": None}
    tpe = Bench(parse(values), tmp_path, items)
    tpe.run()
    assert (tpe.study.converged, tpe.study.done) == (False, 60), "tpe tells nothing of a gain"


def test_a_search_that_converges_at_its_end_has_spent_its_budget(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface._Improvement, "possible", lambda *_: -1.0)
    values = pico_values(pico, sampler="surface", pruner="surface", trials=60)
    early = Bench(parse(values), tmp_path / "early", items)
    early.run()
    values["search"]["trials"] = early.study.done
    late = Bench(parse(values), tmp_path / "late", items)
    late.run()
    assert (late.study.done, late.study.converged) == (early.study.done, False)


def test_a_search_has_a_score_though_what_it_recommends_fails(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface._Improvement, "possible", lambda *_: -1.0)
    values = pico_values(pico, sampler="surface", pruner="surface", trials=60)
    values["baselines"] = {}
    bench, failed = Bench(parse(values), tmp_path, items), 0
    for number in itertools.count():
        name = str(number)
        job = bench.study.next_job(name)
        if job is None:
            break
        if bench.study.converged and not failed:
            failed += 1
            bench.study.finish(name, "out of memory")
            continue
        for block in job.todo:
            bench.study.record([(name, bench.result(job, block))])
        bench.study.finish(name)
    assert failed == 1
    assert bench.study.is_finished
    assert bench.study.done < 60
    assert build_leaderboard(bench.spec, bench.outcomes).recommendation is not None


def test_awa_goes_on_in_its_generation(pico: Path, items: Any, tmp_path: Path) -> None:
    """Its steps are coarse: some proposals are a merged model that is known, and count."""
    values = pico_values(pico, sampler="awa", trials=20)
    values["space"] = {"nm": ["2:8"], "lambda": {"low": 0.0, "high": 2.0, "step": 0.1}}
    values["baselines"] = {}

    def generations(bench: Bench) -> list[int]:
        trials = bench.study._searching._proposer._study.get_trials()
        return [trial.system_attrs[awa.GENERATION] for trial in trials]

    first = Bench(parse(values), tmp_path, items)
    first.run()
    known = generations(first)
    assert len(known) > 20, "some were repeats"
    values["search"]["trials"] = 26
    second = Bench(parse(values), tmp_path, items)
    second.run()
    assert sorted(generations(second)[: len(known)]) == sorted(known)
    assert min(generations(second)[len(known) :]) >= max(known) - 1
    assert len(second.trials()) == 26, "repeats are no trials"


@pytest.mark.parametrize("sampler", ["awa", "cma-es"])
def test_a_space_that_is_searched_through_keeps_no_repeats_at_each_run(
    pico: Path, items: Any, tmp_path: Path, sampler: str
) -> None:
    values = pico_values(pico, sampler=sampler, trials=400)
    values["space"] = {"nm": ["2:8"], "lambda": {"low": 0.5, "high": 1.5, "step": 0.5}}
    values["baselines"], kept = {}, 0
    for _ in range(6):  # a run may by chance find the last points
        bench = Bench(parse(values), tmp_path, items)
        bench.run()
        assert bench.study.exhausted
        before, kept = kept, len(bench.study._database.repeats())
        if not bench.scored:
            break
    assert bench.scored == []
    assert kept == before


@pytest.mark.parametrize("budget", [{"items": 10 * 72}, {"seconds": 9}])
def test_the_end_of_any_budget_is_for_what_is_recommended(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, int]
) -> None:
    values = pico_values(pico, sampler="surface", pruner="surface", **budget)
    del values["search"]["trials"]
    spec = parse(values)
    clock = [0.0]
    monkeypatch.setattr("cabs_search.search.budget.time.monotonic", lambda: clock[0])
    bench = Bench(spec, tmp_path, items)
    score = bench.result

    def tick(job: Job, block: int) -> BlockResult:
        clock[0] += 0.3
        return score(job, block)

    asked: list[tuple[int, float]] = []
    enqueue = bench.study._searching._enqueue_recommended

    def recommend() -> None:
        asked.append((bench.study._searching.budget.items, clock[0]))
        enqueue()

    monkeypatch.setattr(bench, "result", tick)
    monkeypatch.setattr(bench.study._searching, "_enqueue_recommended", recommend)
    bench.run()
    one = (72, 0.9)
    limit = (budget.get("items", 10**6), float(budget.get("seconds", 10**6)))
    first = asked[0]
    assert any(
        most - 3 * each <= at <= most - each
        for most, each, at in zip(limit, one, first, strict=True)
    )
