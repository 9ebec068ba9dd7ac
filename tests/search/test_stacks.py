"""Searching stacks: parameters and stacks say the same, searches begin with each model's own, and
what cannot be searched ends in one line.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.merging.stack import MERGED, Slot, whole
from cabs_search.search.candidates import Candidates
from cabs_search.search.refine.check import check_refine
from cabs_search.search.samplers.registry import check_sampler
from cabs_search.search.space import branches, params_of, size, suggest
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from cabs_search.workflows.plan import plan
from cabs_search.workflows.run import run
from tests.conftest import EXPERTS, pico_values, write_spec
from tests.support.bench import Bench

SCALE = {"low": 0.5, "high": 1.5, "step": 0.25}
STACKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "twice, scaled": {"repeat": 2, "scale": SCALE, "sources": ["mood", "base"]},
    "by depth": {"by": "depth", "repeat": 2},
    "merge alone": {"sources": ["merged"], "repeat": 3, "scale": SCALE},
}


def values_of(pico: Path, stack: Any, **search: Any) -> dict[str, Any]:
    values = pico_values(pico, **search)
    values["space"] = {
        "method": "task-arithmetic",
        "lambda": {"low": 0, "high": 1, "step": 0.25, "shared": True},
        "stack": stack,
    }
    values["baselines"] = {"task-arithmetic": {"lambda": [0.5, 1.0]}}
    return values


def candidates_of(pico: Path, stack: dict[str, Any]) -> Candidates:
    return Candidates.of(parse(values_of(pico, stack | {"layers": 2})))


def naive_stack(params: dict[str, Any], sources: list[str], by: str, repeat: int) -> list[Slot]:
    """Read parameters as the documentation has them."""
    found = []
    for copy in range(1, repeat + 1):
        pairs = [(s, n) for s in sources for n in range(2)]
        if by == "depth":
            pairs = [(s, n) for n in range(2) for s in sources]
        for source, layer in pairs:
            name = f"{source}.{layer}.{copy}"
            if params[f"layer.{name}"]:
                found.append(Slot(source, layer, params.get(f"scale.{name}", 1.0)))
    return found


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_what_its_parameters_say(pico: Path, name: str) -> None:
    stack = STACKS[name]
    candidates = candidates_of(pico, stack)
    sources = stack.get("sources", [MERGED, *EXPERTS])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        recipe = suggest(candidates, trial)
        expected = naive_stack(
            trial.params, sources, stack.get("by", "model"), stack.get("repeat", 1)
        )
        assert list(recipe.stack or whole(MERGED, 2)) == (expected or list(whole(MERGED, 2)))
        params = params_of(candidates, recipe)
        assert params is not None
        assert params.keys() == trial.params.keys()
        study.enqueue_trial(params)
        assert suggest(candidates, study.ask()) == recipe, "other parameters, the same stack"
        assert Recipe.from_dict(recipe.as_dict()) == recipe


def test_a_stack_outside_the_space_has_no_parameters(pico: Path) -> None:
    candidates = candidates_of(pico, STACKS["twice, scaled"])
    method, lambdas = candidates.method("task-arithmetic"), dict.fromkeys(EXPERTS, 0.5)
    for stack, inside in (
        ((Slot("mood", 1), Slot("base", 1), Slot("mood", 0, 0.75)), True),
        ((), True),  # no layer is in: the merge itself
        ((Slot("mood", 0), Slot("mood", 0), Slot("mood", 0)), False),
        ((Slot("animal", 0),), False),
        ((Slot(MERGED, 0),), False),
        ((Slot("mood", 0, 0.8),), False),
        ((Slot("mood", 0, 2.0),), False),
    ):
        recipe = make_recipe(method, lambdas, stack=stack)
        assert (params_of(candidates, recipe) is not None) == inside, stack
    plain = Candidates.of(parse(pico_values(pico)))
    assert params_of(plain, make_recipe(plain.method("cabs"), lambdas, stack=stack)) is None


def test_spaces_are_counted_and_laid_out(pico: Path) -> None:
    candidates = candidates_of(pico, {"sources": ["mood"], "scale": SCALE})
    assert size(candidates) == 5 * 6**2, "λ; a layer is out, or in with one of five scales"
    (branch,) = branches(candidates)
    assert {name: len(values) for name, values in branch.items()} == {
        "lambda": 5,
        **{f"layer.mood.{n}.1": 2 for n in range(2)},
        **{f"scale.mood.{n}.1": 5 for n in range(2)},
    }


def test_another_stack_is_another_model(pico: Path) -> None:
    method = candidates_of(pico, {}).method("task-arithmetic")
    stacks = [
        (),
        (Slot("mood", 0), Slot("mood", 1)),
        (Slot("mood", 1), Slot("mood", 0)),
        (Slot("mood", 0), Slot("animal", 1)),
        (Slot("mood", 0, 0.5), Slot("animal", 1)),
    ]
    for lambda_ in (0.0, 0.5):
        lambdas = dict.fromkeys(EXPERTS, lambda_)
        recipes = [make_recipe(method, lambdas, stack=stack) for stack in stacks]
        assert len({r.sum_key for r in recipes}) == len({r.key for r in recipes}) == len(stacks)
        assert len(set(map(str, recipes))) == len(stacks)
    assert str(recipes[-1]).endswith("| mood 0 ×0.5, animal 1")


class StackBench(Bench):
    """Scores a candidate by how near it is to the layers 0 and 1 of ``mood``, twice."""

    wanted = (*whole("mood", 2), *whole("mood", 2))

    def result(self, job: Any, block: int) -> Any:
        found = super().result(job, block)
        stack = job.recipe.stack
        same = sum(a == b for a, b in zip(stack, self.wanted, strict=False))
        share = same / max(len(stack), len(self.wanted))
        for outcome in found.outcomes.values():
            outcome.scores[:] = np.linspace(0, 1, len(outcome.scores)) < share
        return found


@pytest.mark.parametrize("sampler", ["auto", "cma-es", "random", "grid", "quasi-random"])
def test_a_search_begins_with_each_models_own_and_resumes(
    pico: Path, tmp_path: Path, sampler: str
) -> None:
    stack = {"layers": 2, "sources": ["merged", "mood"], "repeat": 2}
    spec = parse(values_of(pico, stack, trials=14, sampler=sampler))
    if sampler == "auto":
        assert spec.search.sampler_used == "tpe"
        assert spec.search.pruner_used is None
    items = load_study_items(spec)
    bench = StackBench(spec, tmp_path, items)
    bench.run(blocks=20)
    bench.study.close()
    again = StackBench(spec, tmp_path, items)
    again.run()
    recipes = [f.recipe for f in again.finished]
    assert len(recipes) == 14
    assert len({recipe.key for recipe in recipes}) == 14
    assert [recipe.stack for recipe in recipes[:4]].count(()) == 2, "the two baselines"
    assert whole("mood", 2) in [recipe.stack for recipe in recipes[:4]]
    assert sum(bool(recipe.stack) for recipe in recipes) > 8
    assert not set(bench.scored) & set(again.scored), "nothing is scored twice"
    shared = Candidates.of(spec).best_shared(again.outcomes.scored("search"))
    assert shared["task-arithmetic"].recipe.stack == (), "a stack is no baseline"


def test_what_cannot_be_searched_ends_in_a_line(pico: Path) -> None:
    for changes, message in (
        ({"stack": {"sources": ["mood", "nobody"]}}, r"space.stack.sources: .* but got nobody"),
        ({"stack": {"scale": {"low": 2, "high": 3}}}, "space.stack: scale: 1 must be one"),
        ({"stack": {"repeat": 0}}, "space.stack.repeat"),
        ({"stack": {"depth": 3}}, "space.stack.depth"),
        ({"stack": 3}, "space.stack"),
    ):
        values = pico_values(pico, sampler="auto")
        values["space"] |= changes
        with pytest.raises(ValueError, match=message):
            parse(values)
    values = pico_values(pico, refine=True)
    values["space"]["stack"] = True
    with pytest.raises(ValueError, match=r"search.refine: λ of stacks"):
        check_refine(parse(values), (), 10)
    with pytest.raises(ValueError, match=r"generator.engine: vllm has no stacks"):
        parse(values_of(pico, True) | {"generator": "vllm"})
    for sampler in ("surface", "awa"):
        with pytest.raises(ValueError, match=rf"search.sampler: {sampler} does not search stacks"):
            check_sampler(parse(values_of(pico, True, sampler=sampler)))
    assert parse(values_of(pico, False)).space.stack is None


def test_a_grid_of_too_many_stacks_is_refused_before_anything_is_written(
    pico: Path, tmp_path: Path
) -> None:
    stack = {"repeat": 9, "scale": {"low": 0.5, "high": 1.5, "step": 0.01}}
    spec = write_spec(tmp_path / "spec.yaml", values_of(pico, stack, sampler="grid"))
    for action in (plan, partial(run, output=tmp_path / "out")):
        with pytest.raises(ValueError, match=r"but got about 10\^\d+; raise .* fewer settings or"):
            action(spec)
    assert not (tmp_path / "out").exists()


def test_a_study_keeps_its_stacks(pico: Path, tmp_path: Path) -> None:
    spec = parse(values_of(pico, {"layers": 2}, trials=3))
    items = load_study_items(spec)
    Bench(spec, tmp_path, items).study.close()
    for stack in ({"layers": 2, "repeat": 2}, False):
        changed = parse(values_of(pico, stack, trials=3))
        with pytest.raises(ValueError, match=r"space.stack: must stay as it was"):
            Bench(changed, tmp_path, items)
