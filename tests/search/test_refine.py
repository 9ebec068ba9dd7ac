"""Refinement of λ by gradient, without Ray: losses are squares of the distance to known λ."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import Recipe, group_of, make_recipe
from cabs_search.record.entries import Expected
from cabs_search.record.evaluations import Notes, TaskValues
from cabs_search.results.leaderboard import build_leaderboard
from cabs_search.results.refinement import refinement_of
from cabs_search.scoring.forward import ENTROPY
from cabs_search.search.candidates import Candidates
from cabs_search.search.objectives.awa import fitness
from cabs_search.search.refine import refinement
from cabs_search.search.refine.check import check_refine, lengths_of, most_items
from cabs_search.search.refine.evaluated import Evaluated
from cabs_search.search.refine.goals import Goal, goals_of
from cabs_search.search.refine.groups import groups_of
from cabs_search.search.refine.paths import Value, follow
from cabs_search.search.refine.refinement import Refinement
from cabs_search.spec.load import parse
from cabs_search.spec.refine import Refine
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from cabs_search.workflows.prepare import prepare
from tests.conftest import pico_values
from tests.support.bench import TENSORS, Bench

BERT = [
    "embeddings.word_embeddings.weight",
    *(f"encoder.layer.{i}.{part}.weight" for i in (0, 1, 10) for part in ("attention.q", "mlp")),
    "pooler.dense.bias",
]


def test_groups_follow_the_names_of_tensors() -> None:
    names = [group_of(groups_of("layer", BERT), name) for name in BERT]
    assert names == [
        "rest",
        *["layer0", "layer0", "layer1", "layer1", "layer10", "layer10"],
        "rest",
    ]
    modules = [group_of(groups_of("module", BERT), name) for name in BERT]
    assert modules[1:3] == ["layer0.attention", "layer0.mlp"]
    assert [group_of(groups_of("tensor", BERT), name) for name in BERT] == BERT
    two = ["encoder.block.0.w.weight", "decoder.block.0.w.weight"]
    assert len({group_of(groups_of("layer", two), name) for name in two}) == 2
    with pytest.raises(ValueError, match=r"search.refine.levels: layer needs .* weight"):
        groups_of("layer", ["weight"])


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_path_finds_the_least_loss_however_often_it_is_broken_off(optimizer: str) -> None:
    best, scales = np.array([0.2, 0.9, 1.4]), np.array([1.0, 4.0, 2.0])
    settings = Refine(steps={"lbfgs": 12, "adam": 80}[optimizer], optimizer=optimizer)  # type: ignore[arg-type]
    known: dict[bytes, Value] = {}
    asked = 0

    def evaluate(lambdas: Any, _step: int) -> Value:
        nonlocal asked
        if lambdas.tobytes() not in known:
            asked += 1
            away = lambdas - best
            known[lambdas.tobytes()] = Value(float(scales @ away**2), 2 * scales * away)
            raise InterruptedError
        return known[lambdas.tobytes()]

    start = np.full(3, 0.5)
    path = None
    while path is None:
        with suppress(InterruptedError):
            path = follow(settings, start, 0.0, evaluate, lambda _: scales**2)
    assert asked == len(path.points) <= settings.steps
    assert path.end == pytest.approx(best, abs=0.03)
    # a ridge keeps λ near the start, evenly for equal curvature
    near = follow(
        Refine(steps=40),
        start,
        1e3,
        lambda at, _: Value(float(((at - best) ** 2).sum()), 2 * (at - best)),
        lambda _: np.full(3, 2.0),
    )
    assert np.abs(near.end - start).max() < 0.01


def test_steps_follow_the_curvature() -> None:
    """With λ of very different curvature, few steps reach what a plain gradient does not."""
    curved = np.geomspace(1e-4, 1, 40)
    best = np.full(40, 1.5)

    def evaluate(at: Any, _step: int) -> Value:
        return Value(float(curved @ (at - best) ** 2 / 2), curved * (at - best))

    start, settings = np.ones(40), Refine(steps=4)
    known, unknown = (
        follow(settings, start, 0.0, evaluate, lambda _, each=each: each)
        for each in (curved, 1 + 0 * curved)
    )
    assert known.losses[-1] < 0.3 * unknown.losses[-1]
    first = known.points[1] - start
    assert np.linalg.norm(first) == pytest.approx(0.05 * 40**0.5, rel=1e-3)
    damped = curved + 0.3 * curved.mean()
    assert first / np.linalg.norm(first) == pytest.approx(
        curved / damped / np.linalg.norm(curved / damped), abs=1e-3
    )
    flat = follow(settings, start, 0.0, lambda at, _: Value(1.0, 0 * at), lambda _: 0 * start)
    assert flat.end.tolist() == start.tolist()


def test_curvature_is_the_mean_square_of_an_items_gradient() -> None:
    rng, sizes, places = np.random.default_rng(0), {0: 4, 1: 2}, [0, 1, 0]
    weights, scales = {"a": 0.75, "b": 0.25}, {"a": 1.0, "b": 2.0}
    recipe: Any = SimpleNamespace(key="r", experts=("x", "y"))
    sums = {(b, t): rng.normal(size=(2, 3)).astype(np.float32) for b in sizes for t in weights}
    known = [
        (block, task, TaskValues(np.zeros(sizes[block]), np.zeros(sizes[block]), [], each.ravel()))
        for (block, task), each in sums.items()
    ]
    record: Any = SimpleNamespace(read=lambda _: known)
    evaluated = Evaluated(record, 3, weights, lambda *_: 0.0)
    evaluated.goals = {task: Goal(temperature=1.0, scale=scales[task]) for task in weights}
    wanted = []
    for expert, group in itertools.product(range(2), range(2)):
        squares = 0.0
        for (block, task), each in sums.items():
            slope = sum(each[expert][tensor] for tensor in range(3) if places[tensor] == group)
            squares += weights[task] * (slope / scales[task]) ** 2 / sizes[block]
        wanted.append(squares / 2)
    assert evaluated.curvature(recipe, (0, 1), places) == pytest.approx(wanted, rel=1e-5)


def test_a_loss_that_is_worse_than_at_one_weighs_a_hundred_times_as_much() -> None:
    """Each fold's items are compared with their own losses at λ = 1."""
    weights = {"a": 0.75, "b": 0.25}
    recipe = make_recipe(make_method("task-arithmetic", ("x",)), {"x": 0.9})
    losses = {"a": np.array([0.2, 0.6]), "b": np.array([3.0, 5.0])}
    slopes = {"a": np.array([1.0, 2.0]), "b": np.array([-4.0, 0.5])}
    scores = {"a": np.array([0.0, 1.0]), "b": np.array([-30.0, -10.0])}
    known = [
        (block, task, TaskValues(losses[task], scores[task], [0, 0], slopes[task]))
        for task in weights
        for block in (0, 1)
    ]
    record: Any = SimpleNamespace(read=lambda _: known)
    evaluated = Evaluated(record, 2, weights, lambda *_: 0.5)
    kinds = {"a": True, "b": False}
    tasks: Any = {
        t: SimpleNamespace(kind=SimpleNamespace(has_log_losses=h)) for t, h in kinds.items()
    }
    at_one = {"a": [np.array([0.25, 0.75]), np.array([0.1, 0.3])], "b": [np.array([2.0, 2.0])] * 2}
    evaluated.goals = goals_of("loss", tasks, {"a": 0.4, "b": 4.0}, {}, at_one)
    wanted = 0.75 * 0.4 / 0.5 + 0.25 * (1 + 100 * (4 / 2 - 1))
    loss, slope = evaluated.value(recipe, (0,), [0, 1])
    assert loss == pytest.approx(wanted)
    parts = {"a": slopes["a"] / 0.5, "b": 100 * slopes["b"] / 2.0}
    assert slope == pytest.approx(0.75 * parts["a"] / 2 + 0.25 * parts["b"] / 2)
    curved = evaluated.curvature(recipe, (0,), [0, 1])
    assert curved == pytest.approx(0.75 * parts["a"] ** 2 / 2 + 0.25 * parts["b"] ** 2 / 2)
    # in the other block the same loss of a is twice that at λ = 1
    other = 0.75 * (1 + 100 * (0.4 / 0.2 - 1)) + 0.25 * (1 + 100 * (4 / 2 - 1))
    assert evaluated.value(recipe, (1,), [0, 1]).loss == pytest.approx(other)
    both = 0.75 * (1 + 100 * (0.4 / 0.35 - 1)) + 0.25 * (1 + 100 * (4 / 2 - 1))
    assert evaluated.held_out({recipe: (0, 1)}) == pytest.approx((both, 0.5))
    # scores are compared in units of one: b's are minus squared errors
    better = make_recipe(recipe.method, {"x": 1.1})
    risen = [(b, t, v._replace(scores=v.scores + {"a": 0.1, "b": 2.0}[t])) for b, t, v in known]
    record.read = lambda one: risen if one == better else known
    gain, error = evaluated.gain({recipe: (0, 1)}, {better: (0, 1)})
    assert gain == pytest.approx(0.75 * 0.1 + 0.25 * 2.0 / 4.0)
    assert error == pytest.approx(0.0, abs=1e-9)


class _Known:
    """Evaluations that are all known: a narrow valley, and held-out items that like the start."""

    def __init__(self, start: Recipe) -> None:
        self._start, self.goals = start, {}

    def _away(self, recipe: Recipe) -> Any:
        return np.array([recipe.lambda_of("x", t) - 1.0 for t in TENSORS])

    def missing(self, *_: Any) -> list[Any]:
        return []

    def value(self, recipe: Recipe, *_: Any) -> Value:
        turn = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
        bent = turn @ self._away(recipe)
        steep = np.array([1.0, 50.0, 2000.0])
        return Value(float(steep @ bent**2), 2 * turn.T @ (steep * bent))

    def curvature(self, *_: Any) -> Any:
        return np.ones(len(TENSORS))

    def held_out(self, recipes: Any) -> tuple[float, float]:
        return sum(self._moved(recipe) for recipe in recipes), 0.5

    def _moved(self, recipe: Recipe) -> float:
        return sum(abs(recipe.lambda_of("x", t) - self._start.lambda_of("x", t)) for t in TENSORS)

    def gain(self, *_: Any) -> tuple[float, float]:
        return 0.0, 0.1


def test_folds_choose_fewer_steps_where_more_overfit(
    pico: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = make_recipe(make_method("task-arithmetic", ("x",)), {"x": 0.2})

    def refined(steps: int) -> Any:
        known: Any = _Known(start)
        settings = Refine(levels=("tensor",), steps=steps)
        found = Refinement(settings, start, TENSORS, 4, known, lambda _: {}, calibrates=False)
        assert found.next_ask() is None
        assert found.is_done
        return found.results[0]

    long, short = refined(25), refined(6)
    assert lengths_of(Refine(steps=25)) == [25, 12, 6]
    plain = pico_values(pico, refine={"steps": 25, "levels": "expert"})
    path = 25 * 3 - 2 + 3  # three ends on held-out items
    assert most_items(parse(plain), 100, 4) == 100 * (path + 1 + 2)
    assert lengths_of(Refine(steps=25, optimizer="adam")) == [25]
    assert lengths_of(Refine(steps=11)) == [11]
    assert (long.steps, short.steps) == (6, 6)
    assert (long.recipe, long.paths) == (short.recipe, short.paths)
    monkeypatch.setattr(refinement, "lengths_of", lambda own: [own.steps])
    whole = refined(25)
    assert len(whole.paths[0]) > 12
    assert whole.recipe != short.recipe
    note = {"start": start.as_dict(), "settings": {"steps": 25}, "levels": [asdict(long)]}
    text = refinement_of(note).text  # type: ignore[union-attr]
    assert "3 λ (tensor, 6 steps): loss 0.0000 to " in text
    note["settings"] = {"steps": 6}
    assert "3 λ (tensor): loss" in refinement_of(note).text  # type: ignore[union-attr]


SETTINGS = {"levels": ["expert", "layer"], "steps": 12}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"refine": {"levels": "layers"}}, r"search.refine.levels\[0\]: Input should be 'groups'"),
    ({"refine": {"steps": 1}}, r"search.refine.steps: .*2"),
    (
        {"refine": True, "objective": "worst"},
        "search.refine: needs the objective mean, weights, relative or awa, but got worst",
    ),
    ({"refine": True, "block": 24}, "search.refine: 2 blocks of search items are needed"),
    ({"refine": {"levels": "groups"}}, "search.refine.levels: groups must be in space.lambda"),
    ({"refine": {"levels": ["tensor", "layer"]}}, "search.refine.levels: .* coarse to fine"),
]
ANCHORS = {"lambda": {"low": 0, "high": 1, "step": 0.1, "anchors": 2, "layers": 2}}


@pytest.mark.parametrize(("search", "message"), WRONG)
def test_what_cannot_be_refined_is_refused(
    pico: Path, tmp_path: Path, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(parse(pico_values(pico, **search)), tmp_path / "out", None, lambda _: None)
    assert not (tmp_path / "out").exists()


def test_anchors_are_refined_by_layer(pico: Path, items: Any, tmp_path: Path) -> None:
    """The first level starts from what the anchors give each layer."""
    refine = {"steps": 3, "levels": "layer"}
    values = pico_values(pico, trials=1, sampler="random", refine=refine)
    values |= {"baselines": {}}
    values["space"] |= ANCHORS
    bench = Bench(parse(values), tmp_path, items)
    bench.run()
    start = Notes(bench.outcomes).start
    assert start is not None
    assert start.layers == 2
    first = next(key for key, purpose, _ in bench.evaluated if purpose == "gradient")
    level = bench.study._refining._refinement._levels["layer"]  # type: ignore[union-attr]
    begun = level.recipe(level.lambdas(start))
    assert begun.key == first
    for expert in start.experts:
        found = [begun.lambda_of(expert, tensor) for tensor in TENSORS]
        anchors = [start.lambda_by_name[f"{expert}.{place}"] for place in (1, 2)]
        assert found == [*anchors, anchors[0]], "embeddings have the first anchor's"
    values["search"]["refine"]["levels"] = "expert"
    with pytest.raises(ValueError, match="layer, module or tensor must be refined where"):
        check_refine(parse(values, locations=False), TENSORS, 4)


def test_written_texts_have_no_gradient(pico: Path) -> None:
    values = pico_values(pico, refine=True)
    values["tasks"]["sums"] = {"kind": "generation", "dataset": {"json": "x"}, "text": "ask"}
    with pytest.raises(ValueError, match="must have losses with a gradient, but sums is gen"):
        check_refine(parse(values, locations=False), (), 4)


def test_entropy_needs_answers_to_choose_among(pico: Path) -> None:
    values = pico_values(pico, refine={"objective": "entropy"})
    check_refine(parse(values, locations=False), (), 4)
    name = next(iter(values["tasks"]))
    values["tasks"][name] |= {"kind": "regression"}
    with pytest.raises(ValueError, match=f"entropy needs tasks that choose .* {name} is regr"):
        check_refine(parse(values, locations=False), (), 4)


def test_entropy_asks_for_no_temperature_and_is_recorded_apart(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    refine = {"objective": "entropy", "steps": 3, "levels": "expert"}
    spec = parse(pico_values(pico, trials=4, refine=refine))
    bench = Bench(spec, tmp_path, items)
    bench.run(18)
    share = bench.study.stage_share
    assert share is not None
    sizes = [sum(map(len, block.values())) for block in bench.study.blocks["search"]]
    cost = sum(3 * sizes[block] for *_, block in bench.evaluated)
    assert 0 < cost == share.spent < share.limit
    assert bench.study.phase == "refine λ by expert"
    before = bench.evaluated
    bench = Bench(spec, tmp_path, items)
    bench.run()
    followed = {recipe for recipe, what, _ in before + bench.evaluated if what == "gradient"}
    assert len(followed) == 2, "the start, and a step that the folds share; none follows the last"
    purposes = {purpose for _, purpose, _ in bench.evaluated}
    assert purposes == {"gradient", "losses"}
    note = Notes(bench.outcomes).found
    assert note is not None
    assert set(note["temperatures"].values()) == {ENTROPY}


def test_awa_is_refined_by_its_fitness(pico: Path, items: Any, tmp_path: Path) -> None:
    at_one = {"a": 0.5, "b": 2.0}
    task = SimpleNamespace(kind=SimpleNamespace(has_log_losses=True))
    tasks: Any = dict.fromkeys(at_one, task)
    by_block = {name: [np.array([loss])] for name, loss in at_one.items()}
    goals = {n: goal.on([0]) for n, goal in goals_of("loss", tasks, {}, {}, by_block).items()}
    for losses in ({"a": 0.4, "b": 1.0}, {"a": 0.6, "b": 1.5}, {"a": 0.7, "b": 2.1}):
        changes = [goals[task].of(loss) - 1 for task, loss in losses.items()]
        assert sum(changes) == pytest.approx(fitness(losses, at_one))
        for task, loss in losses.items():
            rise = goals[task].of(loss + 1e-6) - goals[task].of(loss - 1e-6)
            assert goals[task].slope(loss) == pytest.approx(rise / 2e-6)
    values = pico_values(
        pico, trials=4, objective="awa", refine={"steps": 4, "levels": ["expert", "layer"]}
    )
    spec = parse(values)
    values["search"] |= {"objective": "mean"}
    assert most_items(spec, 100, 4) == most_items(parse(values), 100, 4) - 100, "no temperatures"
    bench = Bench(spec, tmp_path, items)
    bench.run()
    assert {purpose for _, purpose, _ in bench.evaluated} == {"gradient", "losses"}
    board = build_leaderboard(bench.spec, bench.outcomes)
    assert board.refinement is not None
    assert "λ (expert): fitness " in board.refinement.text
    note = Notes(bench.outcomes).found
    assert note is not None
    for level in note["levels"]:
        for path in level["paths"]:
            assert min(path) < path[0]
    assert _recipes(bench)
    assert bench.study.chosen is not None
    assert bench.study.chosen.recipe == _recipes(bench)[-1]


@pytest.fixture(scope="module")
def spec(pico: Path) -> Spec:
    return parse(pico_values(pico, trials=4, refine=SETTINGS))  # the baselines


@pytest.fixture(scope="module")
def items(spec: Spec) -> Any:
    return load_study_items(spec)


def _recipes(bench: Bench) -> list[Recipe]:
    note = Notes(bench.outcomes).found
    assert note is not None
    return [Recipe.from_dict(level["recipe"]) for level in note["levels"] if level["kept"]]


@pytest.fixture(scope="module")
def undisturbed(spec: Spec, items: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(spec, tmp_path_factory.mktemp("refine"), items)
    bench.run()
    return bench


def test_refined_lambdas_are_candidates_that_are_confirmed(undisturbed: Bench) -> None:
    by_expert, by_layer = _recipes(undisturbed)
    assert [len(recipe.lambdas) for recipe in (by_expert, by_layer)] == [3, 9]
    for expert in by_layer.experts:
        found = [by_layer.lambda_of(expert, tensor) for tensor in TENSORS]
        assert found == pytest.approx([0.6, 0.8, 1.0], abs=0.03)
    outcomes = undisturbed.outcomes
    for split in ("search", "confirm"):
        scored = outcomes.scored(split)
        assert {by_expert.key, by_layer.key} <= scored.keys()
    assert undisturbed.study.chosen is not None
    assert undisturbed.study.chosen.recipe == by_layer
    recipes = {trial.user_attrs["recipe"] for trial in undisturbed.trials()}
    assert len(recipes) == len(undisturbed.trials()) == 4 + 2
    assert undisturbed.study.done == 4, "what is refined is beyond the budget"
    cost = 0
    for _, purpose, block in undisturbed.evaluated:
        items = sum(map(len, undisturbed.study.blocks["search"][block].values()))
        cost += items * (3 if purpose == "gradient" else 1)
    assert outcomes.spent()["refine items"] == cost


@pytest.mark.parametrize("stops", [(20, 3, 5), (14, 25), (40,), (55, 1, 1, 1)])
def test_a_killed_refinement_goes_on_without_paying_twice(
    spec: Spec, items: Any, tmp_path: Path, undisturbed: Bench, stops: tuple[int, ...]
) -> None:
    evaluated: list[tuple[str, str, int]] = []
    for blocks in (*stops, None):
        bench = Bench(spec, tmp_path, items)
        bench.run(blocks)
        evaluated += bench.evaluated
    losses = [(recipe, block) for recipe, what, block in evaluated if what != "temperature"]
    assert len(losses) == len(set(losses)), "something was evaluated twice"
    assert sorted(evaluated) == sorted(undisturbed.evaluated)
    assert _recipes(bench) == _recipes(undisturbed)
    again = Bench(spec, tmp_path, items)
    again.run()
    assert not again.evaluated
    assert not again.scored


def test_a_level_that_held_out_items_do_not_like_is_not_kept(
    pico: Path, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse(pico_values(pico, trials=6, refine={"steps": 3, "levels": ["layer"]}))
    whole = Bench.evaluation
    numbers = itertools.count(1)

    def worse(bench: Bench, job: Any, block: int) -> Any:
        result = whole(bench, job, block)
        if job.purpose == "losses":
            for outcome in result.outcomes.values():
                outcome.scores[:] -= next(numbers)
        return result

    monkeypatch.setattr(Bench, "evaluation", worse)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    assert _recipes(bench) == []
    assert len(bench.trials()) == 6


def test_an_evaluation_that_fails_ends_the_refinement_and_not_the_search(
    spec: Spec, items: Any, tmp_path: Path
) -> None:
    bench = Bench(spec, tmp_path, items)
    live = 0
    while job := bench.study.next_job(str(live)):
        if job.purpose == "gradient":
            bench.study.finish(str(live), "the loss is not finite")
        else:
            for block in job.todo:
                bench.study.record([(str(live), bench.result(job, block))])
            bench.study.finish(str(live))
        live += 1
    assert bench.study.is_finished
    assert bench.study.failure is None
    note = Notes(bench.outcomes).found
    assert note is not None
    assert note["error"] == "the loss is not finite"


def test_the_leaderboard_says_what_each_level_gained(spec: Spec, undisturbed: Bench) -> None:
    board = build_leaderboard(spec, undisturbed.outcomes)
    by_expert, by_layer = _recipes(undisturbed)
    assert board.row("recommended").key == by_layer.key
    assert board.row("refined by expert").key == by_expert.key
    assert board.refinement is not None
    assert board.chosen == board.row("recommended")
    assert board.candidates == len(board.tried) == 4
    assert board.spent.items["refine"] == undisturbed.outcomes.spent()["refine items"]
    gained = board.row("recommended").against["start of refining"].estimate
    assert gained == board.row("recommended").score - board.row("best found").score
    assert "on fresh items, against the start of refining: expert" in board.refinement.text.lower()


def test_a_budget_below_the_baselines_is_kept_to(pico: Path, items: Any, tmp_path: Path) -> None:
    spec = parse(pico_values(pico, trials=2, refine={"steps": 3, "levels": "expert"}))
    bench = Bench(spec, tmp_path, items)
    bench.run()
    (refined,) = _recipes(bench)
    assert bench.outcomes.scored("search").keys() == {
        *(recipe.key for recipe in Candidates.of(spec).baseline_recipes[:2]),
        refined.key,
    }


def test_a_larger_budget_searches_on_and_refines_its_best(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    settings = {"refine": {"steps": 3, "levels": "expert"}}
    for trials in (4, 9):
        spec = parse(pico_values(pico, trials=trials, **settings))
        bench = Bench(spec, tmp_path, items)
        bench.run()
        assert bench.study.done == trials
    refined = Notes(bench.outcomes).refined
    board = build_leaderboard(spec, bench.outcomes)
    assert board.candidates == 9
    assert board.refinement is not None
    assert board.refinement.start == board.row("best found").key not in refined
    # without the stage, what it has found is still none of the search's candidates
    plain = build_leaderboard(parse(pico_values(pico, trials=9)), bench.outcomes)
    assert plain.refinement is None
    assert plain.candidates == 9
    assert not refined & {row.key for row in plain.rows}


def test_the_surfaces_recommendation_is_refined_by_other_settings(
    pico: Path, items: Any, tmp_path: Path
) -> None:
    refine = {"steps": 12, "levels": "tensor", "optimizer": "adam", "ridge": [0, 0.1]}
    spec = parse(pico_values(pico, sampler="surface", trials=9, block=4, refine=refine))
    bench = Bench(spec, tmp_path, items)
    bench.run()
    recommended, start = bench.outcomes.recommended(), Notes(bench.outcomes).start
    assert recommended is not None
    assert start == recommended.recipe
    board = build_leaderboard(spec, bench.outcomes)
    assert start.key in {row.key for row in board.rows}
    (refined,) = _recipes(bench)
    assert [name for name, _ in refined.groups] == list(TENSORS)
    assert board.row("recommended").key == refined.key


def test_a_finished_refinement_keeps_its_start_while_no_candidate_is_new(
    spec: Spec, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bench(spec, tmp_path, items).run()
    again = Bench(spec, tmp_path, items)
    other = min(again.study._searching.searched.values(), key=lambda scored: scored.score).recipe
    expected = Expected(recipe=other, mean=1.0, deviation=0.0)
    monkeypatch.setattr(again.study._searching, "recommend", lambda: expected)
    again.run()
    assert not again.evaluated
