"""Tests of statistics against published numbers, closed forms, scipy and statsmodels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import contingency_tables, multitest

from benchmarks.calibration import WORLDS, Array, World, measure
from cabs_search.stats.independent import mean_interval, student, welch
from cabs_search.stats.paired import bootstrap, mcnemar, paired, permutation, wilcoxon
from cabs_search.stats.simultaneous import (
    Size,
    holm,
    items_needed,
    resample_weights,
    sign_flips,
    simultaneous,
    standard_errors,
    tie_set,
)

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


def test_published_intervals_and_students_test() -> None:
    """Agreement to one unit of the last digit: the runs are published rounded to it."""
    assert mean_interval(TIES_DARE) == pytest.approx((0.7597, 0.7614), abs=1e-4)
    assert mean_interval(CABS) == pytest.approx((0.7641, 0.7653), abs=1e-4)
    assert student(TIES_DARE, CABS).p_value == pytest.approx(3.04e-8, rel=2e-3)


@pytest.mark.parametrize(("ours", "equal"), [(welch, False), (student, True)])
def test_tests_of_runs_are_scipys(ours: Any, equal: bool) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(0, 1, 9), draw.normal(0.5, 3, 14)
    found, expected = ours(a, b), stats.ttest_ind(a, b, equal_var=equal)
    assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert ours([0.3] * 3, [0.1, 0.2, 0.3]).statistic == pytest.approx(np.sqrt(3))
    assert ours([0.3, 0.3], [0.3, 0.3]).p_value == 1.0


def zero_one(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Draw 0/1 scores of two candidates that mostly agree."""
    draw = np.random.default_rng(seed)
    a = draw.random(count) < 0.8
    return a.astype(float), (a ^ (draw.random(count) < 0.1)).astype(float)


def test_mcnemar_is_statsmodels() -> None:
    a, b = zero_one(200)
    table = [[((a == x) & (b == y)).sum() for y in (1, 0)] for x in (1, 0)]
    found = mcnemar(a, b)
    assert found.p_value == pytest.approx(contingency_tables.mcnemar(table, exact=True).pvalue)
    assert found.estimate == pytest.approx(a.mean() - b.mean())
    assert found.interval[0] < found.estimate < found.interval[1]
    assert mcnemar([1.0, 0.0], [1.0, 0.0]).p_value == 1.0
    with pytest.raises(ValueError, match="of scores of 0 and 1"):
        mcnemar([0.5, 1.0], [1.0, 0.0])


def test_wilcoxon_is_scipys() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(0.1, 1, 80), draw.normal(0, 1, 80)
    assert wilcoxon(a, b).p_value == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert wilcoxon(a, a).p_value == 1.0


def test_holm_is_statsmodels() -> None:
    p = np.random.default_rng(0).random(30) ** 3
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_permutation_is_the_exact_test_of_signs() -> None:
    """For 0/1 scores of one stratum the exact permutation test is McNemar's."""
    a, b = zero_one(150, 3)
    assert permutation(a, b).p_value == pytest.approx(mcnemar(a, b).p_value, abs=0.01)
    values = np.array([0.31, -0.12, 0.27, 0.05, 0.4, -0.02, 0.11, 0.2])
    exact = stats.permutation_test(
        (values, np.zeros(8)), lambda x, y: (x - y).mean(), permutation_type="samples"
    )
    assert permutation(values, np.zeros(8)).p_value == pytest.approx(exact.pvalue, abs=0.01)


def test_what_belongs_together_is_flipped_together() -> None:
    """Four items of one article count as one."""
    single = np.array([0.3, 0.1, 0.2, -0.1, 0.4, 0.2])
    four = np.repeat(single, 4) / 4
    together = sign_flips(four[:, None], np.repeat(np.arange(6), 4))[0]
    assert together == pytest.approx(sign_flips(single[:, None])[0], abs=0.01)
    assert sign_flips(four[:, None])[0] < together / 4


def test_a_bootstrap_agrees_with_the_paired_t_test() -> None:
    a, b = zero_one(600)
    strata = ["x"] * 400 + ["y"] * 200
    expected, found = paired(a, b, strata), bootstrap(a, b, strata)
    assert found.estimate == pytest.approx(expected.estimate)
    assert found.interval == pytest.approx(expected.interval, abs=0.003)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.02)


def test_samples_of_few_items_have_the_variance_of_few_items() -> None:
    values = np.random.default_rng(1).normal(size=6)
    means = np.concatenate(
        [(w @ values) / w.sum(axis=1) for w in resample_weights(np.arange(6), 40_000, 0)]
    )
    assert means.var() == pytest.approx(values.var(ddof=1) / 6, rel=0.03)
    clusters = np.array([0, 0, 1, 1, 2, 2])
    drawn = np.concatenate(list(resample_weights(clusters, 100, 0)))
    assert (drawn[:, 0::2] == drawn[:, 1::2]).all()
    assert (drawn.sum(axis=1) == 4).all()


def test_a_familys_intervals_are_wider_than_each_alone_and_closed_under_few_candidates() -> None:
    draw = np.random.default_rng(0)
    replicates = draw.normal(0.8, 0.02, (20_000, 10))
    low, high = simultaneous(np.full(10, 0.8), replicates, Size.of([100_000]))
    bound = stats.norm.ppf(1 - (1 - 0.95 ** (1 / 10)) / 2)  # of independent estimates: Sidak
    assert (high - low) / 2 == pytest.approx(np.full(10, bound * 0.02), rel=0.03)
    one = simultaneous(np.array([0.8]), replicates[:, :1], Size.of([100_000]))
    assert (one[1] - one[0]) / 2 == pytest.approx(1.96 * 0.02, rel=0.03)


def test_candidates_that_always_agree_are_tied_and_a_clear_winner_is_not() -> None:
    draw = np.random.default_rng(0)
    scores = np.column_stack([draw.random(400) < p for p in (0.9, 0.9, 0.6)]).astype(float)
    scores[:, 1] = scores[:, 0]
    replicates = np.concatenate(
        [w @ scores / 399 for w in resample_weights(np.arange(400), 4000, 0)]
    )
    assert tie_set(scores.mean(axis=0), replicates, Size.of([400])).tolist() == [True, True, False]
    assert tie_set(scores.mean(axis=0)[2:], replicates[:, 2:], Size.of([400])).tolist() == [True]


def test_a_perfect_score_is_not_certain() -> None:
    """The rule of three: no error in n items leaves room for some 3 / n."""
    replicates = np.ones((1000, 1))
    assert standard_errors(replicates, Size.of([300]))[0] * 1.96 == pytest.approx(3 / 300, rel=0.1)


def test_a_sample_says_as_much_as_its_smallest_stratum_lets_it() -> None:
    assert Size.of([300] * 4) == Size(items=pytest.approx(1200), freedom=1196)
    assert Size.of([10, 5000]).items == pytest.approx(np.sqrt(8) * 10, rel=1e-3)
    assert Size.of([100, 100], [4, 5]).freedom == 7


def test_few_clusters_keep_their_level() -> None:
    """With four groups of 25 equal items, false finds stay near the level."""
    draw, clusters, found = np.random.default_rng(0), np.repeat(np.arange(4), 25), 0
    size = Size.of([100], [4])
    for seed in range(300):
        difference = np.repeat(draw.normal(size=4), 25) / 4
        means = np.concatenate(
            [(w @ difference) / w.sum(axis=1) for w in resample_weights(clusters, 500, seed)]
        )
        low, high = simultaneous(np.array([difference.mean()]), means[:, None], size)
        found += not low[0] <= 0 <= high[0]
    assert found / 300 < 0.1


def test_items_needed_give_the_power_they_promise() -> None:
    count = items_needed(0.02, 500, 0.03)
    error = 0.02 * np.sqrt(500 / count)
    assert stats.norm.sf(stats.norm.ppf(0.975) - 0.03 / error) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("world", WORLDS[1:3], ids=lambda world: world.name)
def test_claims_hold_at_their_rate(world: World) -> None:
    """100 simulated studies of known truth; ``make calibration`` runs 2,000 of each kind."""
    found = measure(world, 100, 500)
    assert 0.87 <= found["scores covered"] <= 0.99
    assert found["differences covered"] >= 0.88
    assert found["best in tie set"] >= 0.90
    assert found["rejected, Holm"] <= 0.10
    assert found["optimism"] > 0.5 * found["optimism, estimated"] > 0


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="two values a side are needed, but got 1 and 2"):
        welch([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="of the same items, but got 2 and 3"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="each stratum must have at least two items"):
        paired([1.0, 2.0], [1.0, 2.0], ["a", "b"])
