"""The response surface and the Gaussian process, against refits and what made the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from cabs_search.stats import gaussian_process, surface

CANDIDATES, ITEMS, LAMBDAS = 40, 80, 3


def made(seed: int, answered: float = 1.0) -> tuple[np.ndarray, ...]:
    """Return features and scales, and responses of rank 2 with noise, NaN where not answered."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (CANDIDATES + 200, LAMBDAS))
    features, scales = surface.polynomial(x, np.zeros((len(x), 0)))
    common = (features * scales) @ random.normal(size=(features.shape[1], 2))
    truth = random.normal(1, 1, ITEMS) + common @ (1 + random.normal(size=(2, ITEMS)))
    responses = truth + random.normal(0, 0.3, truth.shape)
    responses[random.random(truth.shape) > answered] = np.nan
    return features, scales, responses, truth


def test_a_surface_predicts_candidates_it_has_not_seen() -> None:
    features, scales, responses, _ = made(0)
    known, scores = responses[:CANDIDATES], (responses > 0).astype(float)
    fitted = surface.fit(features[:CANDIDATES], scales, known, scores[:CANDIDATES])
    found, true = (
        fitted.scores(features[CANDIDATES:]).mean(axis=1),
        scores[CANDIDATES:].mean(axis=1),
    )
    assert np.corrcoef(found, true)[0, 1] > 0.95
    assert np.sqrt(((found - true) ** 2).mean()) < true.std() / 3
    sizes = np.sort(np.linalg.eigvalsh(fitted.covariance))[::-1]
    assert sizes[:3].sum() > 0.7 * sizes.sum(), "rank 2 and a constant, without being told"


def test_many_candidates_on_few_items_say_more_than_few_on_all() -> None:
    """Five items of 40 candidates each, against all items of as many answers."""
    errors: dict[str, list[float]] = {"few": [], "all": []}
    for seed in range(4):
        features, scales, whole, truth = made(seed)
        share = 5 / CANDIDATES
        sparse = made(seed, share)[2][:CANDIDATES]
        rows = round(share * CANDIDATES)
        true = (truth[CANDIDATES:] > 0).mean(axis=1)
        for name, given, own in (
            ("few", sparse, features[:CANDIDATES]),
            ("all", whole[:rows], features[:rows]),
        ):
            scores = np.where(np.isnan(given), np.nan, given > 0)
            fitted = surface.fit(own, scales, given, scores)
            errors[name].append(
                float(((fitted.scores(features[CANDIDATES:]).mean(axis=1) - true) ** 2).mean())
            )
    assert np.mean(errors["few"]) < np.mean(errors["all"])


def test_predictions_that_leave_a_candidate_out_are_those_of_a_fit_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, scales, responses, _ = made(1, answered=0.6)
    own, given = features[:CANDIDATES], responses[:CANDIDATES]
    first = surface.fit(own, scales, given)
    # no step of the fit: m, S and σ² stay
    monkeypatch.setattr(surface, "STEPS", 0)
    at = surface.fit(own, scales, given, start=first)
    for row in (0, 7):
        rest = np.delete(np.arange(CANDIDATES), row)
        without = surface.fit(own[rest], scales, given[rest], start=first)
        answered = np.isfinite(given[row])
        expected = own[row] @ without.weights.T
        assert at.left_out[row][answered] == pytest.approx(expected[answered], abs=1e-6)
        assert np.isnan(at.left_out[row][~answered]).all()


def test_log_odds_become_scores_by_a_logistic_curve() -> None:
    random = np.random.default_rng(2)
    responses = random.normal(0, 2, (50, 60))
    scores = (random.random(responses.shape) < expit(0.7 * responses + 0.4)).astype(float)
    assert surface._logistic(responses, scores) == pytest.approx((0.7, 0.4), abs=0.12)


def test_choices_share_items_and_have_an_offset_of_their_own() -> None:
    features, _, responses, _ = made(3)
    x = features[:, 1 : 1 + LAMBDAS]
    arms = np.eye(2)[np.arange(len(x)) % 2]
    responses = responses + 1.5 * arms[:, :1]
    own, scales = surface.polynomial(x, arms)
    rows = np.r_[0:CANDIDATES]
    fitted = surface.fit(own[rows], scales, responses[rows])
    both = [surface.polynomial(x[200:], np.tile(row, (len(x) - 200, 1)))[0] for row in np.eye(2)]
    assert (
        float((fitted.scores(both[0]).mean(axis=1) - fitted.scores(both[1]).mean(axis=1)).mean())
        > 1.0
    )


def process(seed: int = 0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (30, 2))
    y = 5 + np.sin(3 * x[:, 0]) + x[:, 1] ** 2 + random.normal(0, 0.05, 30)
    return x, np.zeros((30, 0)), y, np.full(30, 0.05**2)


def test_a_process_finds_a_curve_and_knows_where_it_does_not_know() -> None:
    x, arms, y, noise = process()
    fitted = gaussian_process.fit(x, arms, y, noise)
    near = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2))
    mean, deviation = fitted.predict(near, np.zeros((200, 0)))
    true = 5 + np.sin(3 * near[:, 0]) + near[:, 1] ** 2
    assert np.sqrt(((mean - true) ** 2).mean()) < 0.3 * true.std()
    far = fitted.predict(np.array([[4.0, 4.0]]), np.zeros((1, 0)))[1]
    assert far[0] > 2 * deviation.mean()


def test_left_out_errors_of_a_process_are_those_of_a_fit_without_the_point() -> None:
    x, arms, y, noise = process()
    fitted = gaussian_process.fit(x, arms, y, noise)
    covariance = fitted.factor @ fitted.factor.T
    rest = np.arange(1, 30)
    weights = np.linalg.solve(covariance[1:, 1:], covariance[1:, 0])
    mean = weights @ (y[rest] - fitted.mean)
    variance = covariance[0, 0] - weights @ covariance[1:, 0]
    assert fitted.left_out[0] == pytest.approx((y[0] - fitted.mean - mean) / variance**0.5)


def test_an_expected_point_changes_no_mean_and_makes_its_surroundings_known() -> None:
    x, arms, y, noise = process()
    fitted = gaussian_process.fit(x, arms, y, noise)
    point, near = np.array([[1.4, 1.4]]), np.array([[1.35, 1.4], [-1.0, 0.0]])
    expected = fitted.with_expected(point, np.zeros((1, 0)), 0.0025)
    before, after = (one.predict(near, np.zeros((2, 0))) for one in (fitted, expected))
    assert after[0] == pytest.approx(before[0], abs=1e-9)
    assert after[1][0] < 0.8 * before[1][0]
    assert after[1][1] <= before[1][1] + 1e-9
    again = replace(expected, kernel=fitted.kernel).predict(point, np.zeros((1, 0)))
    assert again[0] == pytest.approx(fitted.predict(point, np.zeros((1, 0)))[0], abs=1e-9)
