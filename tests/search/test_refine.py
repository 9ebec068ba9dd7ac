"""Refinement of λ by gradient, without Ray: losses are squares of the distance to known λ."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cabs_search.merging.recipe import Recipe, group_of
from cabs_search.record.evaluations import read_note
from cabs_search.results.leaderboard import build_leaderboard
from cabs_search.search.candidates import Candidates
from cabs_search.search.refine.groups import groups_of
from cabs_search.search.refine.paths import Value, follow
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
            path = follow(settings, start, 0.0, evaluate)
    assert asked == len(path.points) <= settings.steps
    assert path.end == pytest.approx(best, abs=0.03)
    # a ridge keeps λ near the start, evenly for equal curvature
    near = follow(
        Refine(steps=40),
        start,
        1e3,
        lambda at, _: Value(float(((at - best) ** 2).sum()), 2 * (at - best)),
    )
    assert np.abs(near.end - start).max() < 0.01


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"refine": {"levels": "layers"}}, r"search.refine.levels\[0\]: Input should be 'groups'"),
    ({"refine": {"steps": 1}}, r"search.refine.steps: .*2"),
    ({"refine": True, "objective": "worst"}, "search.refine: needs the objective mean, weights"),
    ({"refine": True, "block": 24}, "search.refine: 2 blocks of search items are needed"),
    ({"refine": {"levels": "groups"}}, "search.refine.levels: groups must be in space.lambda"),
]


@pytest.mark.parametrize(("search", "message"), WRONG)
def test_what_cannot_be_refined_is_refused(
    pico: Path, tmp_path: Path, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(parse(pico_values(pico, **search)), tmp_path / "out", None, lambda _: None)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def spec(pico: Path) -> Spec:
    return parse(pico_values(pico, trials=6, refine={"steps": 8}))


@pytest.fixture(scope="module")
def items(spec: Spec) -> Any:
    return load_study_items(spec)


def _recipes(bench: Bench) -> list[Recipe]:
    note = read_note(bench.outcomes)
    assert note is not None
    assert note["done"]
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
    assert len(recipes) == len(undisturbed.trials()) == 6 + 2
    half = sum(len(rows) for rows in items_of(undisturbed)) / 2
    cost = 3 * sum(p == "gradient" for _, p, _ in undisturbed.evaluated) * half
    assert outcomes.spent()["refine items"] >= cost / 3


def items_of(bench: Bench) -> list[Any]:
    return list(bench.study.blocks["search"][0].values())


@pytest.mark.parametrize("stops", [(20, 3, 5), (25, 25), (40,)])
def test_a_killed_refinement_goes_on_without_paying_twice(
    spec: Spec, items: Any, tmp_path: Path, undisturbed: Bench, stops: tuple[int, ...]
) -> None:
    evaluated: list[tuple[str, str, int]] = []
    for blocks in (*stops, None):
        bench = Bench(spec, tmp_path, items)
        bench.run(blocks)
        evaluated += bench.evaluated
    assert len(evaluated) == len(set(evaluated)), "something was evaluated twice"
    started = [read_note(b.outcomes)["start"] for b in (bench, undisturbed)]  # type: ignore[index]
    if started[0] == started[1]:
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
        if job.purpose == "held out":
            for outcome in result.outcomes.values():
                outcome.losses[:] += next(numbers)
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
    note = read_note(bench.outcomes)
    assert note is not None
    assert note["error"] == "the loss is not finite"


def test_the_leaderboard_says_what_each_level_gained(spec: Spec, undisturbed: Bench) -> None:
    board = build_leaderboard(spec, undisturbed.outcomes)
    by_expert, by_layer = _recipes(undisturbed)
    assert board.row("recommended").key == by_layer.key
    assert board.row("refined by expert").key == by_expert.key
    assert board.refinement is not None
    assert board.chosen == board.row("recommended")
    assert board.candidates == len(board.tried) == 6
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
