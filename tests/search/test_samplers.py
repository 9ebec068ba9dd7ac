"""Samplers by name: each proposes what the space holds, learns, and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import cmaes
import numpy as np
import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.record.folder import StudyId
from cabs_search.search import space
from cabs_search.search.answered_trials import ANSWERS
from cabs_search.search.candidates import Candidates
from cabs_search.search.proposals import MOST_HOPELESS, Proposal, Proposer
from cabs_search.search.samplers import awa, registry
from cabs_search.search.samplers.grid import GridSampler
from cabs_search.search.samplers.registry import SAMPLERS
from cabs_search.search.samplers.surface import SurfaceSampler
from cabs_search.search.storage import StudyDatabase
from cabs_search.search.surface import Answers
from cabs_search.spec.load import parse
from cabs_search.workflows.prepare import prepare
from tests.conftest import EXPERTS, pico_values

BUDGETS = {"surface": 16, "tpe": 40, "gp": 16, "cma-es": 60, "awa": 60}
"""Candidates within which a sampler that learns finds the peak of ``hill``."""
PLAIN = {"nm": ["2:8"], "order": [EXPERTS], "lambda": {"low": 0.0, "high": 2.0, "step": 0.01}}
CONDITIONAL = {
    "method": ["cabs", "dare", "random", "task-arithmetic"],
    "density": [0.1, 0.3],
    "density_shared": False,
    "lambda": {
        "low": 0.1,
        "high": 2,
        "step": 0.1,
        "methods": {"random": {"low": 2, "high": 10, "step": 0.5}},
    },
}


def candidates_of(pico: Path, changes: dict[str, Any], seed: int = 0) -> Candidates:
    values = pico_values(pico) | {"seed": seed}
    values["space"] |= changes
    return Candidates.of(parse(values))


def hill(recipe: Recipe) -> float:
    values = recipe.lambda_by_name.values()
    return -sum((v - peak) ** 2 for v, peak in zip(values, (0.6, 1.2, 1.5), strict=True))


def search(
    proposer: Proposer, count: int, score: Callable[[Recipe], float | None] = hill
) -> list[Proposal]:
    """Score so many proposals with two pending all the time."""
    pending: list[Proposal] = []
    proposals = []
    for _ in range(count):
        proposals.append(proposer.propose())
        pending.append(proposals[-1])
        if len(pending) > 2:
            ended = pending.pop(0)
            proposer.tell(ended.trial, score(ended.recipe))
    for ended in pending:
        proposer.tell(ended.trial, score(ended.recipe))
    return proposals


def start(candidates: Candidates, name: str, earlier: int = 0) -> Proposer:
    """Return a proposer with the baselines in its queue: two outside the space, two inside."""
    proposer = Proposer(candidates, name, earlier)
    for recipe in candidates.baseline_recipes:
        proposer.enqueue(recipe)
    return proposer


def resume(
    candidates: Candidates, name: str, before: list[Proposal], folder: Path, later: Candidates
) -> Proposer:
    """Write proposals to a database, and make a proposer that takes them from there."""
    database = StudyDatabase(folder, url=None, name="s", study_id=StudyId("1"), space={})
    for proposal in before:
        trial_id = database.add(proposal.trial, proposal.recipe)
        database.complete(trial_id, [hill(proposal.recipe)], 0.0)
    proposer = Proposer(later, name, len(before))
    for trial in database.trials():
        proposer.add(trial)
    database.close()
    return proposer


def slow_gp(names: Iterable[str]) -> list[Any]:
    """Mark Optuna's Gaussian process, which takes a minute."""
    return [pytest.param(name, marks=pytest.mark.slow if name == "gp" else ()) for name in names]


@pytest.mark.parametrize("changes", [PLAIN, CONDITIONAL], ids=["plain", "conditional"])
@pytest.mark.parametrize("name", slow_gp(SAMPLERS))
def test_proposals_are_of_the_space_and_follow_from_the_seed(
    pico: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    if name == "grid" and changes is PLAIN:  # which has too many points
        changes = changes | {"lambda": {"low": 0.0, "high": 2.0, "step": 0.1}}
    candidates = candidates_of(pico, changes)
    baselines = list(candidates.baseline_recipes)
    proposals = search(start(candidates, name), 12)
    assert [p.recipe for p in proposals[: len(baselines)]] == baselines
    again = search(start(candidates, name), 12)
    assert [p.recipe for p in again] == [p.recipe for p in proposals]
    resumed = search(resume(candidates, name, proposals, tmp_path, candidates), 3)
    for proposal in proposals[len(baselines) :] + resumed:
        assert space.params_of(candidates, proposal.recipe) == pytest.approx(proposal.trial.params)
    assert len({p.recipe.key for p in proposals}) > 9


@pytest.mark.parametrize("name", slow_gp(BUDGETS))
def test_samplers_that_learn_beat_chance_and_keep_what_they_learned(
    pico: Path, tmp_path: Path, name: str
) -> None:
    best: dict[str, list[float]] = {name: [], "random": []}
    for seed in (1,) if name == "gp" else (1, 2, 3, 4):
        candidates = candidates_of(pico, PLAIN, seed)
        for sampler, found in best.items():
            before = search(start(candidates, sampler), BUDGETS[name])
            found.append(max(hill(p.recipe) for p in before))
            if sampler == name:
                learned = before
    assert np.mean(best[name]) > np.mean(best["random"]) / 2
    resumed = search(resume(candidates, name, learned, tmp_path, candidates), 6)
    first, later = ([hill(p.recipe) for p in each] for each in (learned[4:16], resumed))
    assert np.median(later) > np.median(first) / 2


def test_trials_of_another_range_teach_what_today_s_range_holds(pico: Path, tmp_path: Path) -> None:
    candidates = candidates_of(pico, PLAIN)
    before = search(start(candidates, "random"), 20)
    narrow = candidates_of(pico, PLAIN | {"lambda": {"low": 0.5, "high": 2.0, "step": 0.01}})
    proposal = resume(candidates, "random", before, tmp_path, narrow).propose()
    *added, asked = proposal.trial.study.get_trials()
    held = [p for p in before if space.params_of(narrow, p.recipe) is not None]
    assert 2 < len(held) < 18
    assert [t.value for t in added] == [hill(p.recipe) for p in held]
    assert all(t.distributions == asked.distributions for t in added)


def test_a_recipe_outside_the_space_is_no_point_to_learn_from(pico: Path) -> None:
    candidates = candidates_of(pico, PLAIN)
    proposals = search(start(candidates, "random"), 5)
    states = [t.state for t in proposals[0].trial.study.get_trials()]
    assert states == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 3


@pytest.mark.parametrize("high", [2.0, 8.0])
def test_awa_starts_near_one_whatever_the_range(pico: Path, high: float) -> None:
    lambdas = {"low": 0.1, "high": high, "step": 0.001, "shared": True}
    candidates = candidates_of(pico, PLAIN | {"lambda": {**lambdas, "high": high + 0.1}})
    proposer = Proposer(candidates, "awa", 0)
    values = [proposer.propose().trial.params["lambda"] for _ in range(400)]
    assert np.mean(values) == pytest.approx(1, abs=0.01)
    assert np.std(values) == pytest.approx(0.05, rel=0.15)


def test_awa_learns_from_six_at_a_time_and_from_its_own_only(pico: Path) -> None:
    proposer = start(candidates_of(pico, PLAIN), "awa")
    proposals = []
    for _ in range(4 + 20):
        proposals.append(proposer.propose())
        proposer.tell(proposals[-1].trial, hill(proposals[-1].recipe))
    trials = proposals[0].trial.study.get_trials()
    generations = [t.system_attrs.get(awa.GENERATION) for t in trials]
    assert generations == [None] * 4 + [0] * 6 + [1] * 6 + [2] * 6 + [3] * 2


@pytest.mark.parametrize(
    ("score", "generations"), [(lambda _: 0.5, awa.MOST_FLAT), (hill, 9)], ids=["flat", "long"]
)
def test_awa_repeats_the_best_once_it_has_ended(
    pico: Path, monkeypatch: pytest.MonkeyPatch, score: Any, generations: int
) -> None:
    monkeypatch.setattr(awa, "MOST_GENERATIONS", 9)
    candidates = candidates_of(pico, PLAIN | {"order": "all"})
    proposer = Proposer(candidates, "awa", 0)
    proposals = []
    for _ in range(generations * 6 + 5):
        proposals.append(proposer.propose())
        proposer.tell(proposals[-1].trial, score(proposals[-1].recipe))
    *searched, a, b, c, d, e = (p.recipe for p in proposals)
    assert a == b == c == d == e == max(searched, key=score)
    assert len({r.key for r in searched}) > generations * 5


def test_awa_equals_a_naive_loop_on_a_quadratic() -> None:
    """Six draws, then one update of the distribution, for as long as the published recipe goes."""
    size, steps = 3, 0.001

    def loss(point: Sequence[float]) -> float:
        return sum((i + 1) * (value - 1.3) ** 2 for i, value in enumerate(point))

    random, made = np.random.default_rng(5), []
    bounds = np.tile([0.1, 2.0], (size, 1))
    cma = cmaes.CMA(mean=np.ones(size), sigma=0.05, bounds=bounds, population_size=6)
    while cma.generation < 50:
        generation = []
        for _ in range(6):
            if made:
                cma.reseed_rng(int(random.integers(2**32)))
                drawn = cma.ask()
            else:  # nothing is known of the space: each λ for itself
                ones = []
                for _ in range(size):
                    one = cmaes.CMA(np.ones(1), 0.05, bounds[:1], population_size=6)
                    one.reseed_rng(int(random.integers(2**32)))
                    ones.append(one.ask()[0])
                drawn = np.array(ones)
            made.append(np.clip(0.1 + np.round((drawn - 0.1) / steps) * steps, 0.1, 2.0))
            generation.append((made[-1], loss(made[-1])))
        cma.tell(generation)
    study = optuna.create_study(sampler=awa.awa(5, 0))
    for step, point in enumerate(made):
        trial = study.ask()
        found = [trial.suggest_float(f"l{i}", 0.1, 2.0, step=steps) for i in range(size)]
        assert found == pytest.approx(point, abs=1e-9), step
        study.tell(trial, loss(found))
    last = study.ask()
    found = [last.suggest_float(f"l{i}", 0.1, 2.0, step=steps) for i in range(size)]
    assert loss(found) == study.best_value, "after 50 generations the best is repeated"
    assert study.best_value < loss([1.0] * size) / 50


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_nsga_breeds_and_goes_on_in_its_generation(pico: Path, tmp_path: Path, name: str) -> None:
    candidates, peaks = candidates_of(pico, PLAIN), (0.6, 1.2, 1.5)
    database = StudyDatabase(
        tmp_path, url=None, name="s", study_id=StudyId("1"), space={}, names=EXPERTS
    )

    def values(recipe: Recipe) -> list[float]:
        """Return three objectives: the best compromise is near the mean of their peaks."""
        means = float(np.mean(list(recipe.lambda_by_name.values())))
        spread = float(np.std(list(recipe.lambda_by_name.values())))
        return [-((means - peak) ** 2) - spread for peak in peaks]

    for begin in (0, 90):  # a first run, and one that goes on
        proposer = Proposer(candidates, name, begin, objectives=3)
        for trial in database.trials():
            proposer.add(trial)
        for _ in range(90):
            proposal = proposer.propose()
            proposer.tell(proposal.trial, values(proposal.recipe))
            trial_id = database.add(proposal.trial, proposal.recipe)
            database.complete(trial_id, values(proposal.recipe), 0.0)
    trials = database.trials()
    database.close()
    (key,) = {key for t in trials for key in t.system_attrs if key.endswith(":generation")}
    assert [t.system_attrs[key] for t in trials] == [place // 20 for place in range(180)]
    first, last = ([sum(t.values) for t in part] for part in (trials[:20], trials[-20:]))
    assert np.mean(last) > np.mean(first)


class TestAwaBySamplerRulesOfOptuna(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: awa.awa(0, 0)


class TestSurfaceBySamplerRulesOfOptuna(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    """Trials of these studies have values only."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: SurfaceSampler(seed=0, startup_trials=0)


class TestGridBySamplerRulesOfOptuna(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Spaces of these studies are not told to it."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: GridSampler(seed=0)


def test_a_grid_has_every_candidate_once_and_goes_on_where_it_was(
    pico: Path, tmp_path: Path
) -> None:
    """Methods have parameters of their own; of 4 baselines 2 are points of the grid."""
    coarse = {"low": 0.0, "high": 2.0, "step": 1.0}
    changes = {"lambda": coarse, "nm": ["2:8"], "density": [0.2], "method": ["cabs", "dare"]}
    candidates = candidates_of(pico, changes)
    points = 27 * 6 + 27
    assert space.size(candidates) == points
    first = search(start(candidates, "grid"), 60)
    rest = search(resume(candidates, "grid", first, tmp_path, candidates), points - 58)
    keys = [p.recipe.key for p in (*first, *rest)]
    assert len(keys) == len(set(keys)) == points + 2
    assert np.mean([p.recipe.method.name == "dare" for p in first]) == pytest.approx(1 / 7, abs=0.1)


def test_a_sampler_is_a_function_and_a_line(pico: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def mine(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
        made.append((seed, startup_trials))
        return optuna.samplers.RandomSampler(seed=seed)

    monkeypatch.setitem(SAMPLERS, "mine", mine)
    spec = parse(pico_values(pico, sampler="mine"))
    candidates = Candidates.of(spec)
    proposal = Proposer(candidates, spec.search.sampler, earlier_trials=3).propose()
    assert made == [(3, 6)]  # of 4 baselines, 2 are in the space
    assert space.params_of(candidates, proposal.recipe) == pytest.approx(proposal.trial.params)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "luck",
            "Input should be 'surface' or 'tpe' or 'gp' or 'cma-es' or 'awa' or 'random' or"
            " 'quasi-random' or 'grid' or 'nsga2' or 'nsga3', but got 'luck'",
        ),
        ("cma-es", "'cma-es' needs the package cmaes; pip install cmaes"),
        ("awa", "'awa' needs the package cmaes; pip install cmaes"),
        (
            "grid",
            "grid needs a space of at most 1,000,000 points, but got 48,723,606; raise"
            " space.lambda.step, or search fewer settings or layers",
        ),
    ],
)
def test_a_sampler_that_cannot_be_had_is_refused_before_anything_is_written(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda _: None)
    values = pico_values(pico, sampler=name)
    values["space"] |= {"nm": ["2:8"], "lambda": {"low": 0, "high": 2, "step": 0.01}}
    spec = parse(values)
    with pytest.raises(ValueError, match=f"^search.sampler: {error}$"):
        prepare(spec, tmp_path / "out", None, lambda _: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "parts", [{"groups": {"embeddings": "embeddings", "rest": "."}}, {"anchors": 2, "layers": 2}]
)
def test_first_candidates_of_a_surface_have_one_value_for_each_expert(
    pico: Path, parts: dict[str, Any]
) -> None:
    candidates = candidates_of(pico, {"lambda": {"low": 0, "high": 1, "step": 0.001} | parts})
    proposer = start(candidates, "surface")
    found = search(proposer, 18, lambda recipe: recipe.lambdas[0][1] - recipe.lambdas[1][1])
    recipes = [proposal.recipe for proposal in found[len(candidates.baseline_recipes) :]]
    whole = [recipe for recipe in recipes[:4] if not (recipe.groups or recipe.layers)]
    assert len(whole) == 4, "λ of all groups are one"
    assert len({recipe.lambdas for recipe in whole}) == 4
    assert all(len({value for _, value in recipe.lambdas}) == len(EXPERTS) for recipe in whole)
    assert any(recipe.groups or recipe.layers for recipe in recipes[6:]), "later ones are not"


def test_a_surface_searches_beside_what_has_one_value(pico: Path) -> None:
    """λ is fixed: the space has as many candidates as orders and n:m."""
    fixed = {"low": 1, "high": 1, "step": 0.1}
    candidates = candidates_of(pico, {"nm": ["2:8", "1:8"], "order": "all", "lambda": fixed})
    proposer = Proposer(candidates, "surface", 0)
    found = search(proposer, 12, lambda recipe: float(crc32(recipe.key.encode()) % 100))
    recommended = proposer.recommend()
    assert recommended is not None
    assert space.params_of(candidates, recommended.recipe) is not None
    learned = [proposal.recipe.key for proposal in found if proposal.expected is not None]
    assert learned
    assert len(set(learned)) == len(learned), "nothing is proposed again while there is more"


def test_a_surface_says_when_little_is_left_to_gain() -> None:
    """Candidates on a tenth of 400 items, with a peak: the noise of a score is 0.013."""
    random = np.random.default_rng(1)
    easy = random.normal(1.0, 1.5, 400)
    sampler = SurfaceSampler(seed=0, startup_trials=8)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    hopeless = []
    for number in range(140):
        trial = study.ask()
        away = [trial.suggest_float(f"lambda.{i}", 0, 2, step=0.01) - 1.8 for i in range(3)]
        odds = easy - float(np.sum(np.square(away))) + random.normal(0, 0.5, 400)
        scored = np.arange(400) % 10 == number % 10
        answers = Answers(
            scores=np.where(scored, odds > 0, np.nan), responses=np.where(scored, odds, np.nan)
        )
        trial.set_user_attr(ANSWERS, {"task": answers})
        study.tell(trial, state=TrialState.PRUNED)
        hopeless.append(sampler.hopeless)
    assert max(hopeless[:50]) == 0, "the peak is not known yet"
    assert max(hopeless) >= MOST_HOPELESS


def test_a_surface_learns_the_peak_from_a_tenth_of_every_candidate_s_items() -> None:
    """Forty candidates on 20 of 200 items each: as many answers as four candidates' on all."""
    random = np.random.default_rng(0)
    easy, peak = random.normal(2.0, 1.5, 200), np.array([0.6, 1.2, 1.5])
    sampler = SurfaceSampler(seed=0, startup_trials=12)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for number in range(41):
        trial = study.ask()
        values = [trial.suggest_float(f"lambda.{i}", 0, 2, step=0.01) for i in range(3)]
        odds = easy - 3 * ((np.array(values) - peak) ** 2).sum() + random.normal(0, 0.5, 200)
        scored = np.arange(200) % 10 == number % 10
        if number == 40:
            scored[:] = True  # one is complete, or nothing could be recommended
        answers = Answers(
            scores=np.where(scored, odds > 0, np.nan), responses=np.where(scored, odds, np.nan)
        )
        trial.set_user_attr(ANSWERS, {"task": answers})
        if number < 40:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, float((odds > 0).mean()))
    found = sampler.recommend(study)
    assert found is not None
    distance = np.abs(np.array([found.params[f"lambda.{i}"] for i in range(3)]) - peak)
    assert distance.max() < 0.25
    assert len(sampler.predicted) > 20, "every proposal came with a prediction"
    assert sampler.recommend(study) == found, "it depends on what is known alone"
