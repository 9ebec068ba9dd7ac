"""Objectives: their numbers by hand, and searches in which they change what is best."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from cabs_search.kinds.base import Outcome
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.record.entries import Scored
from cabs_search.reporting.charts.study import pictures
from cabs_search.reporting.html.page import write_page
from cabs_search.results.leaderboard import Leaderboard, build_leaderboard
from cabs_search.search.candidates import best_of, on_front, reference_recipes
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.objectives.check import check_objective
from cabs_search.search.objectives.registry import objective_of, with_references
from cabs_search.search.samplers.surface import SurfaceSampler
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.stats.pareto import crowding_distance, pareto_front
from cabs_search.tasks.load import load_study_items
from tests.conftest import EXPERTS, pico_values, write_spec
from tests.support.bench import Bench

PEAKS = {"mood": 0.4, "animal": 0.8, "pair": 1.4}
"""λ, shared by all experts, at which each task is scored best."""
WEIGHTS = {"weights": {"mood": 8, "animal": 1, "pair": 1}}


def spec_of(pico: Path, objective: Any, **search: Any) -> Spec:
    values = pico_values(pico, objective=objective, **search)
    values["space"] = {"nm": ["2:8"], "lambda": {"low": 0.1, "high": 1.9, "step": 0.1}}
    values["space"]["lambda"]["shared"] = True
    values["baselines"] = {"cabs": {"lambda": [1.2]}}
    return parse(values)


@pytest.fixture(scope="module")
def items(pico: Path) -> Any:
    return load_study_items(spec_of(pico, "mean"))


class Tradeoff(Bench):
    """Each task is best at a λ of its own; an expert by itself is right on most of its items."""

    def result(self, job: Job, block: int) -> BlockResult:
        self.scored.append((job.recipe.key, job.split, block))
        outcomes = {}
        for task, rows in self.study.blocks[job.split][block].items():
            quality = quality_of(job.recipe, task)
            draws = np.random.default_rng(list(rows)).random(len(rows))
            scores = (draws < quality).astype(np.float32)
            labels = self.items[job.split][task].labels[rows]
            losses = np.full(len(rows), 1.5 - quality, np.float32)
            outcomes[task] = Outcome(scores, losses, np.where(scores > 0, labels, labels + 1))
        return BlockResult(
            block=block, outcomes=outcomes, materialize_seconds=0.1, evaluate_seconds=0.2
        )


def quality_of(recipe: Recipe, task: str) -> float:
    lambdas = recipe.lambda_by_name
    if not recipe.is_shared:
        return {"mood": 0.9, "animal": 0.9, "pair": 0.5}[task]  # experts
    return 0.9 - abs(lambdas["mood"] - PEAKS[task]) / 2 - (0.4 if task == "pair" else 0)


def scored(scores: dict[str, float], losses: dict[str, float], value: float = 0.5) -> Scored:
    outcomes = {
        task: Outcome(np.array([scores[task]]), np.array([losses[task]]), np.array([0]))
        for task in scores
    }
    recipe = make_recipe(make_method("task-arithmetic", EXPERTS), dict.fromkeys(EXPERTS, value))
    return Scored(recipe, outcomes, scores, 0.0)


SCORES = {"mood": 0.6, "animal": 0.9, "pair": 0.3}
LOSSES = {"mood": 0.5, "animal": 0.3, "pair": 1.1}
AT_ONE = scored({"mood": 0.5, "animal": 0.5, "pair": 0.5}, {"mood": 0.4, "animal": 0.6, "pair": 1})
EXPERT_SCORES = {"mood": 0.8, "animal": 0.9, "pair": 0.6}


@pytest.mark.parametrize(
    ("objective", "score", "values"),
    [
        ("mean", 0.6, (0.6,)),
        (WEIGHTS, 0.8 * 0.6 + 0.1 * 0.9 + 0.1 * 0.3, (0.6,)),
        ("worst", 0.3, (0.3,)),
        ("relative", (0.6 / 0.8 + 0.9 / 0.9 + 0.3 / 0.6) / 3, (0.75,)),
        # mood's loss grew by a quarter, pair's by a tenth; animal's halved
        ("awa", 0.6, (-(100 * 0.25 - 0.5 + 100 * 0.1),)),
        ("tasks", 0.6, (0.9, 0.6, 0.3)),  # by name: animal, mood, pair
    ],
    ids=["mean", "weights", "worst", "relative", "awa", "tasks"],
)
def test_the_numbers_of_an_objective(
    pico: Path, objective: Any, score: float, values: tuple[float, ...]
) -> None:
    spec = spec_of(pico, objective)
    experts = reference_recipes(spec.experts)
    known = {
        experts[f"expert {task}"].key: scored(SCORES | {task: own}, LOSSES)
        for task, own in EXPERT_SCORES.items()
    }
    found = with_references(objective_of(spec), lambda recipe: known.get(recipe.key, AT_ONE))
    assert found is not None
    judged = found.applied(scored(SCORES, LOSSES))
    assert judged.score == pytest.approx(score)
    assert judged.objectives == pytest.approx(values)
    unknown = with_references(objective_of(spec), lambda _: None)
    assert (unknown is None) == (objective in ("relative", "awa"))


def test_fronts_and_distances_by_hand() -> None:
    values = np.array([[1, 5], [2, 4], [2, 3], [4, 2], [5, 1], [4, 2], [0, 5]], dtype=float)
    front = pareto_front(values)
    assert front.tolist() == [True, True, False, True, True, True, False]
    apart = crowding_distance(np.array([[1, 5], [2, 4], [4, 2], [5, 1]], dtype=float))
    assert apart.tolist() == [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 3 / 4, np.inf]


def test_the_best_of_several_objectives_are_on_the_front(pico: Path) -> None:
    objective = objective_of(spec_of(pico, "tasks"))
    rows = [(0.5, 0.5, 0.5), (0.9, 0.4, 0.4), (0.1, 0.9, 0.1), (0.4, 0.4, 0.4), (0.6, 0.45, 0.4)]
    candidates = [
        objective.applied(scored(dict(zip(EXPERTS, row, strict=True)), LOSSES, 0.1 * place))
        for place, row in enumerate(rows, 1)
    ]
    front = [tuple(s.scores.values()) for s in on_front(candidates)]
    assert front[0] == rows[1], "the best mean comes first"
    assert set(front) == {*rows} - {rows[3]}
    assert front[-1] == rows[4], "the most crowded comes last"
    assert [s.recipe for s in best_of(candidates, 2)] == [
        s.recipe for s in on_front(candidates)[:2]
    ]


def run(pico: Path, items: Any, folder: Path, objective: Any, **search: Any) -> Bench:
    bench = Tradeoff(
        spec_of(pico, objective, trials=20, sampler="random", confirm=4, **search), folder, items
    )
    bench.run()
    assert bench.study.failure is None
    assert len(bench.scored) == len(set(bench.scored)), "nothing is scored twice"
    return bench


def board_of(bench: Bench) -> Leaderboard:
    return build_leaderboard(bench.spec, bench.outcomes)


def best_lambda(bench: Bench) -> float:
    assert bench.study.best is not None
    board = board_of(bench)
    assert board.row("best found").key == bench.study.best.recipe.key
    return bench.study.best.recipe.lambdas[0][1]


@pytest.fixture(scope="module")
def by_objective(
    pico: Path, items: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bench]:
    given = ["mean", WEIGHTS, "worst", "relative", "awa", "tasks"]
    names = ["mean", "weights", "worst", "relative", "awa", "tasks"]
    return {
        name: run(pico, items, tmp_path_factory.mktemp(name), objective)
        for name, objective in zip(names, given, strict=True)
    }


def test_the_objective_says_what_is_best(by_objective: dict[str, Bench]) -> None:
    found = {name: best_lambda(bench) for name, bench in by_objective.items()}
    assert found["weights"] < found["mean"], "it weighs the task most that wants a small λ"
    assert found["worst"] > found["mean"], "the worst task wants a large λ"
    assert found["relative"] >= found["mean"]
    assert found["awa"] == pytest.approx(1.0), "another λ makes some loss grow"
    for name, bench in by_objective.items():
        told = [t.values for t in bench.trials() if t.state == TrialState.COMPLETE]
        searched = bench.study._searching.ended.scored.values()
        assert sorted(map(tuple, told)) == sorted(s.objectives for s in searched), name


def test_reports_say_what_was_maximized(by_objective: dict[str, Bench]) -> None:
    boards = {name: board_of(bench) for name, bench in by_objective.items()}
    assert boards["mean"].objective == ""
    for name, part in {"weights": "mood 8, animal 1", "worst": "lowest", "awa": "CABS+"}.items():
        assert part in boards[name].objective
    row = boards["awa"].row("best found")
    assert row.objective == 0.0, "it is λ = 1 itself"
    assert row.score == pytest.approx(np.mean(list(row.tasks.values())))
    for name, aggregate in {"worst": min, "mean": lambda v: sum(v) / len(v)}.items():
        for one in boards[name].rows:
            assert one.score == pytest.approx(aggregate(one.tasks.values()))
            assert one.simultaneous[0] <= one.score <= one.simultaneous[1]


def test_experts_are_scored_once_and_are_no_candidates(by_objective: dict[str, Bench]) -> None:
    bench = by_objective["relative"]
    board, experts = board_of(bench), reference_recipes(bench.spec.experts)
    own = {recipe.key for label, recipe in experts.items() if label != "base"}
    first = list(dict.fromkeys(key for key, split, _ in bench.scored if split == "search"))
    assert set(first[:3]) == own, "before anything else"
    assert board.candidates == len(bench.finished)
    assert own.isdisjoint(tried.key for tried in board.tried)
    spent = sum(len(its) for its in bench.items["search"].values())
    assert board.spent.items["search"] == spent * (board.candidates + 3)
    searched = {label: bench.outcomes.scored_one("search", r) for label, r in experts.items()}
    own_scores = {t: s.scores[t] for t in EXPERTS if (s := searched[f"expert {t}"])}
    for row in board.rows:
        relative = np.mean([row.tasks[t] / own_scores[t] for t in EXPERTS])
        assert row.score == pytest.approx(relative)


def test_lambda_one_is_the_first_candidate_of_awa(by_objective: dict[str, Bench]) -> None:
    bench = by_objective["awa"]
    at_one = [f for f in bench.finished if set(f.recipe.lambda_by_name.values()) == {1.0}]
    assert [f.state for f in at_one] == ["complete"]
    assert at_one[0].scored is not None
    assert at_one[0].scored.values == (0.0,)
    for finished in bench.finished:
        assert finished.scored is not None
        naive = 0.0
        for task, loss in finished.scored.losses.items():
            delta = (loss - at_one[0].scored.losses[task]) / at_one[0].scored.losses[task]
            naive += 100 * delta if delta > 0 else delta
        assert finished.scored.values == pytest.approx((-naive,))


@pytest.mark.parametrize("objective", ["relative", "awa"])
def test_a_search_killed_at_its_references_goes_on(
    pico: Path, items: Any, tmp_path: Path, objective: str
) -> None:
    spec = spec_of(pico, objective, trials=6, sampler="random")
    done: list[tuple[str, str, int]] = []
    for blocks in (1, 2, 3, 5, None):
        bench = Tradeoff(spec, tmp_path, items)
        bench.run(blocks)
        done += bench.scored
        build_leaderboard(spec, bench.outcomes)  # can be read at any time
    assert len(done) == len(set(done)), "nothing is scored twice"
    assert bench.study.done == 6
    assert all(f.scored is not None for f in bench.finished)


def test_an_expert_that_scores_nothing_ends_the_search(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.search.test_objectives.quality_of", lambda *_: 0.0)
    bench = Tradeoff(spec_of(pico, "relative"), tmp_path, items)
    bench.run()
    assert bench.study.failure is not None
    assert bench.study.failure.startswith("search.objective: relative needs experts that score")
    assert bench.study.done == 0


def test_the_objective_of_a_folder_stays(pico: Path, items: Any, tmp_path: Path) -> None:
    Bench(spec_of(pico, WEIGHTS), tmp_path, items).study.close()
    Bench(spec_of(pico, WEIGHTS), tmp_path, items).study.close()
    with pytest.raises(
        ValueError,
        match=r"^search\.objective: must stay as it was when the study in study\.db began"
        r" \(weights animal 1, mood 8, pair 1\), but got tasks; choose another --output$",
    ):
        Bench(spec_of(pico, "tasks"), tmp_path, items)


def test_a_study_of_before_there_were_objectives_has_the_mean(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    Bench(spec_of(pico, "mean"), tmp_path, items).study.close()
    with closing(sqlite3.connect(tmp_path / "study.db")) as db, db:
        db.execute("DELETE FROM study_user_attributes WHERE key = 'objective'")
    with pytest.raises(ValueError, match=r"\(mean\), but got worst"):
        Bench(spec_of(pico, "worst"), tmp_path, items)
    Bench(spec_of(pico, "mean"), tmp_path, items).study.close()


@pytest.mark.parametrize(
    ("objective", "search", "error"),
    [
        ("best", {}, "search.objective: Input should be 'mean' or .* but got 'best'"),
        ("weights", {}, r"search.objective: weights must be given, as in \{weights: .*"),
        (
            "worst",
            {"sampler": "surface"},
            "search.sampler: the objective worst needs one of tpe, gp, cma-es, awa, random,"
            " quasi-random, grid, but got 'surface'",
        ),
        (
            "tasks",
            {"sampler": "cma-es"},
            "search.sampler: the objective tasks needs one of tpe, gp, random, quasi-random,"
            " grid, nsga2, nsga3, but got 'cma-es'",
        ),
        ("mean", {"sampler": "nsga2"}, "search.sampler: the objective mean needs one of .*"),
        (
            "awa",
            {"pruner": "race"},
            "search.pruner: race needs the objective mean, weights or relative, but got awa",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    pico: Path, objective: str, search: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=f"^{error}$"):
        check_objective(spec_of(pico, objective, **search))


def test_weights_reach_races_and_the_surface(pico: Path, items: Any, tmp_path: Path) -> None:
    spec = spec_of(pico, WEIGHTS, trials=12, sampler="surface", pruner="surface", block=4)
    bench = Tradeoff(spec, tmp_path, items)
    weights = {"animal": 0.1, "mood": 0.8, "pair": 0.1}
    sampler = bench.study._searching._proposer._items_sampler
    assert isinstance(sampler, SurfaceSampler)
    assert sampler.weights == pytest.approx(weights)
    (rounds,) = bench.study._searching.judge.weighed(np.ones((1, 3)))
    assert rounds.tolist() == pytest.approx([1 / 8, 1, 1 / 8])
    bench.run()
    whole = bench.outcomes.scored("search")  # a stopped one may have been recommended since
    stopped = [f for f in bench.finished if f.state == "stopped" and f.recipe.key not in whole]
    assert stopped
    for finished in stopped:
        blocks = bench.outcomes.block_results(finished.recipe, "search").values()
        means = {t: np.concatenate([b[t][0] for b in blocks]).mean() for t in EXPERTS}
        expected = sum(weights[t] * means[t] for t in EXPERTS)
        assert finished.partial_score == pytest.approx(expected)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "quasi-random"])
def test_samplers_of_several_objectives_search_and_go_on(
    pico: Path, items: Any, tmp_path: Path, sampler: str
) -> None:
    spec = spec_of(pico, "tasks", trials=10, sampler=sampler)
    first = Tradeoff(spec, tmp_path, items)
    first.run(15)
    again = Tradeoff(spec, tmp_path, items)
    again.run()
    assert again.study.failure is None
    assert {len(t.values) for t in again.trials() if t.state == TrialState.COMPLETE} == {3}
    board = board_of(again)
    assert board.front
    assert board.row("best found").key == board.front[0]


def test_the_front_is_in_the_report(by_objective: dict[str, Bench]) -> None:
    bench = by_objective["tasks"]
    board = board_of(bench)
    write_spec(bench.folder / "spec.yaml", bench.spec.as_dict())
    metrics = {tried.key: list(tried.tasks.values()) for tried in board.tried}
    front = pareto_front(np.array(list(metrics.values())))
    assert set(board.front) == {key for key, on in zip(metrics, front, strict=True) if on}
    page = write_page(board, bench.folder).read_text()
    assert 'id="front"' in page
    assert "on the front" in page
    assert f"{len(board.front)} of {board.candidates} candidates are on the Pareto front" in page
    assert "pareto-front" in pictures(board)
    assert "pareto-front" not in pictures(board_of(by_objective["mean"]))
