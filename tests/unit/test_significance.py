"""Statistics against published numbers, closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cabs_search.significance import from_replicates, paired, percentile_interval, resamples, welch

# Ten sampled Mistral-7B runs each, from CABS's public review thread (arXiv 2503.01874).
TIES_DARE = [0.7608, 0.7618, 0.7607, 0.7583, 0.7596, 0.7596, 0.7603, 0.7618, 0.7615, 0.7614]
CABS = [0.7660, 0.7652, 0.7631, 0.7651, 0.7640, 0.7641, 0.7652, 0.7650, 0.7648, 0.7643]


def test_welch_gives_the_published_statistic() -> None:
    found = welch(TIES_DARE, CABS)
    assert found.statistic == pytest.approx(-9.226, abs=5e-4)
    assert found.p_value == pytest.approx(7.11e-8, rel=1e-3)
    assert found.estimate == pytest.approx(-0.0041, abs=5e-5)
    assert found.interval[0] < found.estimate < found.interval[1] < 0


def test_paired_is_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(2, size=80).astype(float), draw.integers(2, size=80).astype(float)
    expected = stats.ttest_rel(a, b)
    found = paired(a, b)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_strata_weigh_the_same_whatever_their_size() -> None:
    a = np.array([1.0] * 90 + [0.0, 1.0] * 5)
    b = np.array([0.0, 1.0] * 45 + [1.0, 1.0] * 5)
    found = paired(a, b, ["large"] * 90 + ["small"] * 10)
    assert found.estimate == pytest.approx((0.5 - 0.5) / 2)


def test_equal_candidates_are_equal() -> None:
    found = paired([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (found.estimate, found.p_value, found.interval) == (0.0, 1.0, (0.0, 0.0))


def test_intervals_cover_at_their_rate() -> None:
    draw, hits = np.random.default_rng(0), 0
    for _ in range(400):
        a, b = (draw.random(200) < 0.8).astype(float), (draw.random(200) < 0.75).astype(float)
        low, high = paired(a, b, ["x"] * 150 + ["y"] * 50).interval
        hits += low <= 0.05 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_bootstrap_agrees_with_the_closed_form() -> None:
    scores = np.repeat([1.0, 0.0], [160, 40])
    low, high = percentile_interval(scores[resamples(200, 4000, 0)].mean(axis=1))
    error = np.sqrt(0.8 * 0.2 / 200)
    assert (low, high) == pytest.approx((0.8 - 1.96 * error, 0.8 + 1.96 * error), abs=0.008)


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="two values a side are needed, but got 1 and 2"):
        welch([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="of the same items, but got 2 and 3"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="two items a stratum"):
        paired([1.0, 2.0], [1.0, 2.0], ["a", "b"])


def test_a_paired_bootstrap_agrees_with_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.random(300) < 0.8).astype(float), (draw.random(300) < 0.72).astype(float)
    draws = resamples(300, 4000, (0, 1))
    expected, found = paired(a, b), from_replicates(a.mean() - b.mean(), (a - b)[draws].mean(axis=1))
    assert found.estimate == pytest.approx(expected.estimate)
    assert found.interval == pytest.approx(expected.interval, abs=0.01)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.02)
    assert from_replicates(0.0, np.zeros(100)).p_value == 1.0
