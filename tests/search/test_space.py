"""Searching every dimension: a recipe and its parameters say the same; what counts as one space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from cabs_search.merging.method import METHOD_NAMES, combine_rule_of
from cabs_search.merging.recipe import LambdaKey, make_recipe
from cabs_search.search.candidates import Candidates
from cabs_search.search.space import params_of, size, suggest
from cabs_search.spec.load import parse
from tests.conftest import EXPERTS, pico_values

GROUPS = {"embeddings": "embeddings", "lower": r"layer\.0\.", "rest": "."}
SPACES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all methods": {"method": [n for n in METHOD_NAMES if combine_rule_of(n).experts is None]},
    "density": {"method": ["dare", "magnitude", "cabs"], "density": [0.1, 0.25, 1.0]},
    "density each": {
        "method": ["dare", "cabs", "task-arithmetic"],
        "density": [0.1, 0.3],
        "density_shared": False,
    },
    "beside cabs": {
        "method": ["cabs", "cabs-rounds", "cabs-growing", "cabs-relative"],
        "rounds": [2, 4],
        "growth": [0.5, 2],
        "nm": ["2:8", "8:32"],
        "density_shared": False,
    },
    "shared": {"lambda": {"low": 0.1, "high": 0.7, "step": 0.1, "shared": True}},
    "groups": {
        "method": ["ca", "ties-dare"],
        "lambda": {"low": -1, "high": 1, "step": 0.25, "groups": GROUPS},
    },
    "groups shared": {
        "lambda": {"low": 0, "high": 1, "step": 0.05, "groups": GROUPS, "shared": True}
    },
    "anchors": {
        "method": ["linear", "ties-dare"],
        "lambda": {"low": -1, "high": 1, "step": 0.25, "anchors": 3, "layers": 7},
    },
    "anchors shared": {
        "method": ["cabs", "dare"],
        "lambda": {
            "low": 0,
            "high": 1,
            "step": 0.05,
            "anchors": 2,
            "layers": 2,
            "shared": True,
            "methods": {"dare": {"low": 1, "high": 3, "step": 0.5}},
        },
    },
    "own ranges": {
        "method": ["cabs", "random", "ties"],
        "lambda": {
            "low": 1,
            "high": 2,
            "step": 0.1,
            "methods": {"random": {"low": 2, "high": 10, "step": 0.5}},
        },
    },
    "overlap": {
        "method": ["cabs", "ca"],
        "overlap": "drop",
        "overlap_merge": "ties",
        "tail": "drop",
    },
}


def candidates_of(pico: Path, changes: dict[str, Any]) -> Candidates:
    values = pico_values(pico)
    values["space"] |= changes
    return Candidates.of(parse(values))


@pytest.mark.parametrize("name", SPACES)
def test_a_recipe_and_its_parameters_say_the_same(pico: Path, name: str) -> None:
    candidates = candidates_of(pico, SPACES[name])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = set()
    for _ in range(60):
        trial = study.ask()
        recipe = suggest(candidates, trial)
        found.add(recipe.method.name)
        assert params_of(candidates, recipe) == pytest.approx(trial.params), recipe
        assert candidates.holds(recipe.method)
        keys = [key for key, _ in recipe.lambdas]
        assert keys in ([LambdaKey(e) for e in EXPERTS], list(candidates.lambda_keys))
        study.enqueue_trial(trial.params)
        assert suggest(candidates, study.ask()) == recipe
    methods = {m.name for m in candidates.methods()}
    assert found <= methods
    assert len(methods) == 1 or len(found) > 1


def test_what_is_outside_has_no_parameters(pico: Path) -> None:
    candidates = candidates_of(pico, SPACES["own ranges"])
    for method, lambda_, inside in (
        (candidates.method("cabs"), 1.5, True),
        (candidates.method("cabs"), 2.5, False),
        (candidates.method("cabs"), 1.55, False),
        (candidates.method("random"), 2.5, True),
        (candidates.method("random"), 1.5, False),
        (candidates.method("task-arithmetic"), 1.5, False),
        (candidates.method("cabs", nm=(1, 4)), 1.5, False),
        (candidates.method("ties", density=0.33), 1.5, False),
    ):
        recipe = make_recipe(method, dict.fromkeys(EXPERTS, lambda_))
        assert (params_of(candidates, recipe) is not None) == inside, recipe


def test_recipes_with_other_anchors_have_no_parameters(pico: Path) -> None:
    candidates = candidates_of(pico, SPACES["anchors"])
    grouped = candidates_of(pico, SPACES["groups"])
    method = candidates.method("linear")
    for count, layers, inside in ((3, 7, True), (2, 7, False), (3, 8, False)):
        names = [LambdaKey(e, str(place)) for e in EXPERTS for place in range(1, count + 1)]
        lambdas = {key: 0.25 * place for place, key in enumerate(names)}
        lambdas |= {key: 1.0 for key in names if lambdas[key] > 1}
        recipe = make_recipe(method, lambdas, layers=layers)
        found = params_of(candidates, recipe)
        assert (found is not None) == inside
        assert params_of(grouped, recipe) is None
        assert found is None or found["lambda.mood.2"] == 0.25


def test_methods_have_the_dimensions_of_their_rule(pico: Path) -> None:
    candidates = candidates_of(pico, {"density": [0.1, 0.5]})
    assert set(candidates.dimensions("cabs")) == {"nm", "order"}
    assert set(candidates.dimensions("ca")) == {"density", "order"}
    assert set(candidates.dimensions("ties-dare")) == {"density"}
    assert candidates.dimensions("task-arithmetic") == {}


def test_densities_are_those_of_nm_unless_given(pico: Path) -> None:
    assert candidates_of(pico, {}).space.densities == (0.25,), "2:8 and 8:32 are one density"
    assert candidates_of(pico, {"density": 0.5}).space.densities == (0.5,)


def test_size_counts_every_dimension(pico: Path) -> None:
    lambdas = 21**3
    assert size(candidates_of(pico, {})) == 2 * 6 * lambdas
    assert size(candidates_of(pico, {"density_shared": False})) == 2**3 * 6 * lambdas
    assert (
        size(candidates_of(pico, {"method": ["dare", "ties-ca"], "density": [0.1, 0.2]}))
        == (2 + 2 * 6) * lambdas
    )
    shared = {"low": 0, "high": 1, "step": 0.5, "groups": GROUPS, "shared": True}
    assert size(candidates_of(pico, {"method": "dare", "lambda": shared})) == 3**3
    each = shared | {"shared": False}
    assert size(candidates_of(pico, {"method": "dare", "lambda": each})) == 3**9
    anchors = {"low": 0, "high": 1, "step": 0.5, "anchors": 4}  # layers are not counted yet
    assert size(candidates_of(pico, {"method": "dare", "lambda": anchors})) == 3**12
    anchors["shared"] = True
    assert size(candidates_of(pico, {"method": "dare", "lambda": anchors})) == 3**4


def test_random_masks_take_the_studys_seed(pico: Path) -> None:
    values = pico_values(pico) | {"seed": 5, "baselines": {"dare": {"lambda": [1.0]}}}
    assert [r.as_dict()["seed"] for r in Candidates.of(parse(values)).baseline_recipes] == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, "space.density[0]: Input should be greater than 0, but got 0.0"),
        (
            {"density": 1.5},
            "space.density[0]: Input should be less than or equal to 1, but got 1.5",
        ),
        (
            {"method": ["dare", "dare"]},
            "space.method: each value must stand once, but got dare twice",
        ),
        (
            {"lambda": {"groups": {"x": "("}}},
            "space.lambda.groups.x: a group must be a regular expression, but got '('",
        ),
        (
            {"lambda": {"anchors": 3, "groups": {"all": "."}}},
            "space.lambda: anchors must not stand beside groups",
        ),
        ({"lambda": {"layers": 3}}, "space.lambda: layers must not stand without anchors"),
        (
            {"lambda": {"anchors": 3, "layers": 2}},
            "space.lambda: 2 <= anchors <= layers <= 1000 must hold, but got (anchors=3, layers=2)",
        ),
        ({"lambda": {"methods": {"magic": {}}}}, "method must be one of"),
        (
            {"lambda": {"methods": {"dare": {"low": 1, "high": 0}}}},
            "space.lambda.methods.dare: low <= high must hold",
        ),
        (
            {"lambda": {"methods": {"dare": {"shared": True}}}},
            "space.lambda.methods.dare.shared: no such field",
        ),
        (
            {"overlap_merge": "mean"},
            "space.overlap_merge: Input should be 'sum' or 'ties', but got 'mean'",
        ),
    ],
)
def test_bad_values_meet_one_line(pico: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # the message is compared as text below
        candidates_of(pico, changes)
    assert message in str(caught.value)
