"""Combine rules that weigh or transform whole vectors, against their papers' formulas.

mergekit's own results stand beside them in ``test_mergekit``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.search.candidates import Candidates
from cabs_search.search.refine.check import check_refine
from cabs_search.search.space import branches, params_of
from cabs_search.spec.load import parse
from cabs_search.workflows.prepare import prepare
from tests.conftest import EXPERTS, pico_values
from tests.merging.test_methods import LAMBDAS, NAMES, change, made_up, naive_top, pruned

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
SEEDS = st.integers(0, 10**6)


def sparse(seed: int, *shape: int) -> dict[str, Tensor]:
    """Vectors with zeros, one of them 0 in the whole tensor now and then."""
    deltas = {name: tau * (tau.abs() > 0.4) for name, tau in made_up(seed, *shape).items()}
    if seed % 5 == 0:
        deltas["b"] = torch.zeros(shape)
    return deltas


def naive_sce(vectors: list[Array], lambdas: list[float], density: float) -> Array:
    """SCE one weight at a time: select, calculate, erase."""
    stack = np.stack([v.reshape(-1) for v in vectors])
    spread = stack.var(axis=0)
    chosen = naive_top(spread, int(density * np.count_nonzero(spread) + 0.5))
    stack = stack * chosen
    squares = (stack**2).sum(axis=1)
    merged = np.zeros(stack.shape[1])
    for i in np.flatnonzero(chosen):
        values = stack[:, i]
        sign = 1.0 if values.sum() >= 0 else -1.0
        agree = values * sign > 0
        if agree.any():
            weights = squares * agree / (squares * agree).sum()
            merged[i] = (weights * values * lambdas).sum()
    return merged.reshape(vectors[0].shape)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([0.1, 0.5, 1.0]))
def test_sce_is_select_calculate_erase(seed: int, density: float) -> None:
    deltas = sparse(seed, 6, 7)
    found = change(make_method("sce", NAMES, density=density), deltas, LAMBDAS)
    vectors = [tau.double().numpy() for tau in deltas.values()]
    expected = naive_sce(vectors, [LAMBDAS[n] for n in NAMES], density)
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_sce_needs_vectors_to_compare() -> None:
    with pytest.raises(ValueError, match="variance: two experts at the least are needed"):
        pruned(make_method("sce", ("a",)), made_up(0, 3, 3, count=1))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_ram_averages_what_several_change(seed: int, plus: bool) -> None:
    deltas = sparse(seed, 5, 8)
    threshold = 0.7
    method = make_method("ram-plus" if plus else "ram", NAMES, threshold=threshold)
    vectors = [tau.double().numpy() for tau in deltas.values()]
    active = np.stack([np.abs(v) > threshold for v in vectors])
    uses = active.sum(axis=0)
    expected = np.zeros((5, 8))
    for name, tau, mine in zip(NAMES, vectors, active, strict=True):
        alone, shared = (mine & (uses == 1)).sum(), (mine & (uses > 1)).sum()
        own = 1 + 0.1 * min(shared / max(alone, 1), 0.2) if plus else 1.0
        for place in zip(*np.nonzero(mine), strict=True):
            part = own if uses[place] == 1 else 1 / uses[place]
            expected[place] += LAMBDAS[name] * part * tau[place]
    assert np.allclose(change(method, deltas, LAMBDAS).numpy(), expected, atol=1e-5)


def test_linear_of_weights_that_nearly_cancel_is_the_base() -> None:
    recipe = make_recipe(make_method("linear", ("a", "b")), {"a": 0.5, "b": -0.4999})
    assert [recipe.lambda_of(expert, "x") for expert in "ab"] == [0.0, 0.0]


def test_linear_is_the_weighted_mean() -> None:
    deltas, method = made_up(1, 4, 5), make_method("linear", NAMES)
    weights = {"a": 1.0, "b": 2.5, "c": 1.5}
    recipe = make_recipe(method, weights)
    shares = {name: recipe.lambda_of(name, "w") for name in NAMES}
    assert shares == {"a": 0.2, "b": 0.5, "c": 0.3}
    expected = sum(shares[n] * deltas[n] for n in NAMES)
    assert torch.allclose(change(method, deltas, shares), expected, atol=1e-6)
    doubled = make_recipe(method, {name: 2 * x for name, x in weights.items()})
    same = make_recipe(make_method("task-arithmetic", NAMES), shares)
    assert recipe.sum_key == doubled.sum_key == same.sum_key
    groups = (("low", "layer.0"), ("rest", "."))
    by_group = make_recipe(
        method, {"a.low": 1, "a.rest": 1, "b.low": 3, "b.rest": 1, "c.low": 0, "c.rest": 2}, groups
    )
    assert [by_group.lambda_of(n, "layer.0.w") for n in NAMES] == [0.25, 0.75, 0.0]
    assert [by_group.lambda_of(n, "layer.1.w") for n in NAMES] == [0.25, 0.25, 0.5]
    zero = make_recipe(method, {"a": 1, "b": -1, "c": 0})
    assert [zero.lambda_of(n, "w") for n in NAMES] == [0, 0, 0]


def test_model_stock_goes_as_far_as_the_angle_says() -> None:
    """At 60° two experts are worth 2/3 of their mean."""
    deltas = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([0.5, 0.75**0.5])}
    found = change(make_method("model-stock", ("a", "b")), deltas, LAMBDAS | {"a": 1, "b": 1})
    assert torch.allclose(found, (deltas["a"] + deltas["b"]) / 3)
    against = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([-1.0, 0.1])}
    assert not change(make_method("model-stock", ("a", "b")), against, LAMBDAS).any()
    alone = {"a": deltas["a"]}
    assert torch.equal(change(make_method("model-stock", ("a",)), alone, {"a": 1}), deltas["a"])


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_model_stock_is_its_formula(seed: int) -> None:
    deltas = {name: tau + 0.7 for name, tau in sparse(seed + 1, 4, 6).items()}
    vectors = [tau.double().numpy().reshape(-1) for tau in deltas.values()]
    units = [v / np.linalg.norm(v) for v in vectors]
    cosine = np.mean([units[i] @ units[j] for i in range(3) for j in range(i)])
    ratio = max(0.0, 3 * cosine / (1 + 2 * cosine))
    expected = ratio / 3 * sum(LAMBDAS[n] * v for n, v in zip(NAMES, vectors, strict=True))
    found = change(make_method("model-stock", NAMES), deltas, LAMBDAS)
    assert np.allclose(found.reshape(-1).numpy(), expected, atol=1e-5)


def test_multi_slerp_is_the_middle_of_the_sphere() -> None:
    """Of two vectors: slerp at 1/2 of their directions, and the mean of their lengths."""
    method = make_method("multi-slerp", ("a", "b"))
    ones = {"a": 1.0, "b": 1.0}
    deltas = made_up(2, 3, 4, count=2)
    one, other = (tau.double().numpy().reshape(-1) for tau in deltas.values())
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    angle = np.arccos(one @ other / np.prod(lengths))
    middle = np.sin(angle / 2) / np.sin(angle) * (one / lengths[0] + other / lengths[1])
    found = change(method, deltas, ones).reshape(-1).numpy()
    assert np.allclose(found, middle * np.mean(lengths), atol=1e-6)
    opposite = {"a": deltas["a"], "b": -2 * deltas["a"]}
    assert not change(method, opposite, ones).any()


def test_slerp_is_on_the_arc() -> None:
    """At t of the angle from one end, by its sines; straight between ends of one direction."""
    base = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    deltas = made_up(2, 3, 4, count=2)
    for name, origin in (("slerp", base), ("nuslerp", torch.zeros(3, 4))):
        method = make_method(name, ("a", "b"))
        ends = [(origin + tau).double().numpy().reshape(-1) for tau in deltas.values()]
        angle = np.arccos(ends[0] @ ends[1] / np.prod([np.linalg.norm(e) for e in ends]))
        for t in (0.0, 0.3, 1.0, 1.2):
            recipe = make_recipe(method, {"a": 2 * (1 - t), "b": 2 * t})
            shares = {e: recipe.lambda_of(e, "w") for e in "ab"}
            on_arc = np.sin((1 - t) * angle) * ends[0] + np.sin(t * angle) * ends[1]
            expected = on_arc / np.sin(angle) + (base - origin).numpy().reshape(-1)
            found = change(method, deltas, shares, base).reshape(-1).numpy()
            assert np.allclose(found, expected, atol=1e-5), (name, t)
    shares, tau = {"a": 0.75, "b": 0.25}, deltas["a"]
    for factor in (1.0, 3.0, -1.0, 0.0):
        found = change(make_method("nuslerp", ("a", "b")), {"a": tau, "b": factor * tau}, shares)
        share = 0.75 + 0.25 * factor if factor else np.sin(0.75 * np.pi / 2)
        assert torch.allclose(found, float(share) * tau, atol=1e-6), factor
    near = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([np.cos(0.02), np.sin(0.02)]).float()}
    for name, length in (("nuslerp", 1.0), ("slerp", np.cos(0.01))):  # models go straight there
        found = change(make_method(name, ("a", "b")), near, {"a": 0.5, "b": 0.5}, torch.zeros(2))
        assert float(found.norm()) == pytest.approx(length, abs=1e-6), name


def test_karcher_is_the_least_sum_of_squared_angles() -> None:
    """No direction nearby is nearer to all; opposite models leave something finite."""
    deltas, generator = made_up(4, 20), np.random.default_rng(3)
    base, weights = torch.linspace(-1, 2, 20), {"a": 0.2, "b": 0.5, "c": 0.3}
    ends = [(base + deltas[n]).double().numpy() for n in NAMES]
    found = change(make_method("karcher", NAMES), deltas, weights, base).double().numpy()
    lengths = [np.linalg.norm(end) for end in ends]
    assert np.linalg.norm(found) == pytest.approx(np.dot(list(weights.values()), lengths))

    def spread(point: Array) -> float:
        cosines = [point @ e / np.linalg.norm(point) / np.linalg.norm(e) for e in ends]
        return float(np.dot(list(weights.values()), np.arccos(cosines) ** 2))

    least = spread(found)
    for _ in range(100):
        assert spread(found + 0.05 * generator.standard_normal(20)) > least
    opposite = {"a": deltas["a"] - base, "b": -deltas["a"] - base}
    halves = {"a": 0.5, "b": 0.5}
    assert change(make_method("karcher", ("a", "b")), opposite, halves, base).isfinite().all()


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "karcher", "multi-slerp"])
def test_weights_of_a_mean_are_no_factors(method: str) -> None:
    """All 0 is the base, one alone is its expert; one name for one model, another for others."""
    names, made = ("a", "b"), make_method(method, ("a", "b"))
    base, deltas = torch.linspace(-1, 2, 20).reshape(5, 4), made_up(7, 5, 4, count=2)
    assert torch.equal(change(made, deltas, {"a": 0.0, "b": 0.0}, base), base)
    found = change(made, deltas, {"a": 0.0, "b": 1.0}, base) - base
    scale = 2 if method == "multi-slerp" else 1
    assert torch.allclose(scale * found, deltas["b"], atol=1e-5)
    keys = {make_recipe(made, {"a": 1.0, "b": x}).sum_key for x in (0.5, 1.0, 2.0)}
    others = {
        make_recipe(make_method(m, names), {"a": x, "b": x}).sum_key
        for m, x in (("linear", 1.0), ("task-arithmetic", 0.5), ("task-arithmetic", 1.0))
    }
    assert len(keys) == 3
    assert not keys & others


def test_two_experts_and_no_more(pico: Path) -> None:
    with pytest.raises(ValueError, match="method: slerp merges 2 experts, but got 3"):
        make_recipe(make_method("slerp", NAMES), dict.fromkeys(NAMES, 1.0))
    values = pico_values(pico)
    values["space"]["method"] = ["nuslerp"]
    with pytest.raises(ValueError, match=r"space\.method: nuslerp merges 2 experts, but got 3"):
        prepare(parse(values), pico / "nowhere", None, print)


def naive_tsv(vectors: list[Array], lambdas: list[float]) -> Array:
    """TSV-M as the paper builds it: all tasks' singular vectors side by side."""
    count = len(vectors)
    if vectors[0].ndim != 2 or min(vectors[0].shape) < count:
        return sum(x * v for x, v in zip(lambdas, vectors, strict=True)) / count
    rank = min(vectors[0].shape) // count
    parts = [np.linalg.svd(v, full_matrices=False) for v in vectors]
    left = np.concatenate([u[:, :rank] for u, _, _ in parts], axis=1)
    values = np.concatenate([x * s[:rank] for x, (_, s, _) in zip(lambdas, parts, strict=True)])
    right = np.concatenate([vt[:rank] for _, _, vt in parts], axis=0)
    p, _, q = np.linalg.svd(left, full_matrices=False)
    r, _, t = np.linalg.svd(right, full_matrices=False)
    return (p @ q) @ np.diag(values) @ (r @ t)


@pytest.mark.parametrize("shape", [(9, 13), (12, 6), (7,), (2, 20), (3, 4, 5)])
def test_tsv_and_iso_c_are_their_papers(shape: tuple[int, ...]) -> None:
    deltas = made_up(3, *shape)
    vectors = [tau.double().numpy() for tau in deltas.values()]
    found = change(make_method("tsv", NAMES), deltas, LAMBDAS).numpy()
    assert np.allclose(found, naive_tsv(vectors, [LAMBDAS[n] for n in NAMES]), atol=1e-4)
    expected = sum(vectors) / 3
    if len(shape) == 2:
        left, values, right = np.linalg.svd(sum(vectors), full_matrices=False)
        expected = values.mean() * left @ right
    found = change(make_method("iso-c", NAMES), deltas, dict.fromkeys(NAMES, 1.5)).numpy()
    assert np.allclose(found, 1.5 * expected, atol=1e-4)


def test_tsv_and_iso_c_by_hand() -> None:
    deltas = {"a": torch.diag(torch.tensor([3.0, 0.0])), "b": torch.diag(torch.tensor([0.0, 1.0]))}
    lambdas = {"a": 2.0, "b": 1.0}
    found = change(make_method("tsv", ("a", "b")), deltas, lambdas)
    assert torch.allclose(found, torch.diag(torch.tensor([6.0, 1.0])), atol=1e-6)
    found = change(make_method("iso-c", ("a", "b")), deltas, lambdas)
    assert torch.allclose(found, 1.5 * 2 * torch.eye(2), atol=1e-6), "the mean of λ counts"


@pytest.mark.parametrize("shape", [(9, 6), (4, 13), (7,)])
def test_wudi_is_the_least_of_its_papers_loss(shape: tuple[int, ...]) -> None:
    """Autograd's gradient is 0 there; vectors of rows at right angles are summed."""
    deltas, method = made_up(12, *shape), make_method("wudi", NAMES)
    ones = dict.fromkeys(NAMES, 1.0)
    found = change(method, deltas, ones).double().requires_grad_()
    if len(shape) == 1:
        assert torch.allclose(found.float(), sum(deltas.values()) / 3)
        return
    taus = [tau.double() for tau in deltas.values()]
    loss = sum(((found - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus)
    loss.backward()
    assert found.grad.abs().max() < 1e-4
    start = sum(taus)
    worse = sum(((start - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus)
    assert loss < worse
    faint = {"a": torch.diag(torch.tensor([1.0, 1e-4]))}
    assert torch.allclose(change(make_method("wudi", ("a",)), faint, {"a": 1.0}), faint["a"])
    apart = {"a": torch.eye(4)[:2] * 3, "b": torch.eye(4)[2:]}
    assert torch.allclose(
        change(make_method("wudi", ("a", "b")), apart, ones), apart["a"] + apart["b"], atol=1e-6
    )


def test_directions_of_no_length_are_left_out() -> None:
    """Updates of low rank: what an SVD returns beyond their rank is arbitrary."""
    torch.manual_seed(5)
    deltas = {name: torch.randn(12, 1) @ torch.randn(1, 12) for name in NAMES}
    for name, rank in (("tsv", 3), ("iso-c", 3)):
        found = change(make_method(name, NAMES), deltas, dict.fromkeys(NAMES, 1.0))
        assert np.linalg.matrix_rank(found.numpy(), tol=1e-4) == rank
    values = torch.linalg.svdvals(sum(deltas.values()))
    assert torch.allclose(torch.linalg.svdvals(found)[:3], values.sum() / 3)


def test_one_result_has_one_lambda_to_search(pico: Path) -> None:
    values = pico_values(pico)
    values["space"] |= {"method": ["iso-c", "tsv"]}
    candidates = Candidates.of(parse(values))
    iso_c, tsv = branches(candidates)
    assert {name for name in iso_c if name.startswith("lambda")} == {"lambda"}
    assert {name for name in tsv if "lambda" in name} == {f"lambda.{e}" for e in EXPERTS}
    recipe = make_recipe(candidates.method("iso-c"), dict.fromkeys(EXPERTS, 0.5))
    assert params_of(candidates, recipe) == {"method": "iso-c", "lambda": 0.5}


def test_normalised_lambdas_are_not_refined(pico: Path) -> None:
    values = pico_values(pico, refine=True)
    values["baselines"] = {"linear": {"lambda": [1.0]}}
    with pytest.raises(
        ValueError, match=r"search\.refine: .*those of linear are weights of a mean"
    ):
        check_refine(parse(values), (), 4)
