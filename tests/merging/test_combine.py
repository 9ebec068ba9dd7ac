"""Combine rules that weigh or transform whole vectors, against their papers' formulas.

mergekit's own results stand beside them in ``test_mergekit``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cabs_search.merging.recipe import make_method
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
