"""Response surface of one task: each item's response as a smooth function of a candidate.

A candidate c has features φ_c (``polynomial``), an item i has coefficients w_i. The item's response
to the candidate, such as the log-odds of the right answer, is

    z_ci = φ_c · w_i + ε_ci,    w_i ~ N(m, S),    ε_ci ~ N(0, σ²)

The items of a task have much in common: what helps one helps many. m and S hold what is common, so
that an item that few candidates have answered borrows from the others. S is learned, and comes out
with a few large directions: the surface is of low rank without a rank to choose. m, S and σ² are
fitted by expectation-maximization; given them, w_i is a ridge regression. Which candidates answer
which items may depend on earlier answers: the likelihood does not mind.

A score in [0, 1] follows from log-odds by a logistic curve, fitted to predictions that left the
candidate out; other scores are responses themselves. Sources: Gelman and Hill, Data Analysis Using
Regression and Multilevel/Hierarchical Models (2007), for the model; Rasmussen and Williams,
Gaussian Processes for Machine Learning (2006), 5.4.2, for leaving one out without fitting again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

MOST_CROSSED = 8
"""Most λ whose products are features too; with more, only their powers are."""
STEPS, MOST_STEPS = 3, 20
"""Steps of a fit that goes on from an earlier one, and of a first one."""
LEAST_NOISE = 1e-6
PRIOR_ITEMS = 10.0
"""Number of items that the prior of S weighs as much as."""
CURVE_ITEMS = 20_000
"""Most responses that the logistic curve is fitted to."""


def polynomial(x: Floats, arms: Floats) -> tuple[Floats, Floats]:
    """Return features of candidates, and how large their coefficients are expected to be.

    Args:
        x: λ, scaled to about [-1, 1], [candidates, λ].
        arms: 1 where a candidate has a choice (a method, an order, an n:m), else 0,
            [candidates, choices].

    Returns:
        Features: 1, powers of λ to the third and their products, an offset and a slope in λ for
        each choice, [candidates, features]; prior standard deviations, [features].

    """
    count, size = x.shape
    parts = [np.ones((count, 1)), x]
    # Wide: expectation-maximization makes S smaller in a few steps, and larger in many.
    scales = [4.0, *[2.0] * size]
    for power, scale in ((2, 1.0), (3, 0.5)):
        for chosen in _products(size, power):
            parts.append(x[:, chosen].prod(axis=1, keepdims=True))
            scales.append(scale)
    slopes = (arms[:, :, None] * x[:, None, :]).reshape(count, -1)
    parts += [arms, slopes]
    scales += [1.0] * arms.shape[1] + [0.4] * slopes.shape[1]
    features: Floats = np.concatenate(parts, axis=1)
    return features, np.array(scales)


def _products(size: int, power: int) -> Iterator[list[int]]:
    if size <= MOST_CROSSED - 2 * (power - 2):
        yield from map(list, itertools.combinations_with_replacement(range(size), power))
    else:
        yield from ([i] * power for i in range(size))


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """A fitted surface of one task."""

    mean: Floats
    """m, [features]."""
    covariance: Floats
    """S, [features, features]."""
    noise: float
    """σ²."""
    weights: Floats
    """w, [items, features]."""
    curve: tuple[float, float] | None
    """Slope and shift of the logistic curve from response to score; None: they are the same."""
    left_out: Floats
    """Predicted scores of the candidates it was fitted to, each without itself; NaN where an item
    was not answered, [candidates, items].
    """

    def scores(self, features: Floats) -> Floats:
        """Predict scores of candidates on all items, [candidates, items]."""
        return _curved(features @ self.weights.T, self.curve)


def fit(
    features: Floats,
    scales: Floats,
    responses: Floats,
    scores: Floats | None = None,
    start: Surface | None = None,
) -> Surface:
    """Fit a surface.

    Args:
        features: of candidates, [candidates, features].
        scales: prior standard deviation of each feature's coefficient, [features].
        responses: NaN where a candidate has not answered an item, [candidates, items].
        scores: scores in [0, 1] of the same, [candidates, items]; None: the responses are scores.
        start: a fit to go on from, of the same items and features; None: from the prior.

    """
    groups = _groups(features, responses)
    prior = np.diag(scales**2)
    if start is None:
        mean = np.zeros(len(scales))
        mean[0] = np.nanmean(responses)
        covariance, noise = prior, 1.0
    else:
        mean, covariance, noise = start.mean, start.covariance, start.noise
    items = responses.shape[1]
    found = _regress(groups, items, mean, covariance, noise)
    for _ in range(MOST_STEPS if start is None else STEPS):
        mean = found.weights.mean(axis=0)
        deviations = found.weights - mean
        common = deviations.T @ deviations + found.spread
        covariance = (PRIOR_ITEMS * prior + common) / (PRIOR_ITEMS + items)
        noise = max(found.noise, LEAST_NOISE)
        found = _regress(groups, items, mean, covariance, noise)
    left_out = np.full_like(responses, np.nan)
    for group, posterior in zip(groups, found.posteriors, strict=True):
        left_out[np.ix_(group.rows, group.columns)] = _left_out(
            group, found.weights, posterior, noise
        )
    curve = None if scores is None else _logistic(left_out, scores)
    return Surface(
        mean=mean,
        covariance=covariance,
        noise=noise,
        weights=found.weights,
        curve=curve,
        left_out=_curved(left_out, curve),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """Items that the same candidates have answered."""

    columns: Ints
    """The items."""
    rows: Ints
    """The candidates."""
    features: Floats
    """ΦᵀΦ, ΦᵀZ and the sums of squares of Z are all that the fit needs of Φ and Z."""
    responses: Floats
    gram: Floats
    moments: Floats
    squares: Floats


def _groups(features: Floats, responses: Floats) -> list[_Group]:
    answered = np.isfinite(responses)
    # Items have equal sums of random numbers if the same candidates have answered them.
    sums = np.random.default_rng(0).random(len(answered)) @ answered
    groups = []
    for number in np.unique(sums):
        columns = np.flatnonzero(sums == number)
        rows = np.flatnonzero(answered[:, columns[0]])
        own, given = features[rows], responses[np.ix_(rows, columns)]
        groups.append(
            _Group(
                columns=columns,
                rows=rows,
                features=own,
                responses=given,
                gram=own.T @ own,
                moments=own.T @ given,
                squares=(given**2).sum(axis=0),
            )
        )
    return [group for group in groups if len(group.rows)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Regression:
    """Ridge regressions of all items, given what they have in common."""

    weights: Floats
    spread: Floats
    """Sum of the covariances of the items' coefficients."""
    noise: float
    """σ² that the errors suggest."""
    posteriors: list[Floats]
    """Covariance of an item's coefficients, by group."""


def _regress(
    groups: Sequence[_Group], items: int, mean: Floats, covariance: Floats, noise: float
) -> _Regression:
    weights = np.tile(mean, (items, 1))
    spread, squares, count = np.zeros_like(covariance), 0.0, 0
    identity = np.eye(len(covariance))
    half = np.linalg.cholesky(covariance + 1e-9 * identity)
    posteriors = []
    for group in groups:
        # (S⁻¹ + ΦᵀΦ/σ²)⁻¹, in a form that needs no inverse of S
        inner = identity + half.T @ group.gram @ half / noise
        posterior: Floats = np.asarray(half @ np.linalg.solve(inner, half.T), dtype=np.float64)
        own = mean + (group.moments.T - group.gram @ mean) @ posterior / noise
        weights[group.columns] = own
        fitted = (own @ group.gram * own).sum() - 2 * (own.T * group.moments).sum()
        count_here = len(group.columns)
        squares += float(group.squares.sum() + fitted)
        squares += count_here * float((group.gram * posterior).sum())
        spread += count_here * posterior
        count += group.responses.size
        posteriors.append(posterior)
    return _Regression(
        weights=weights, spread=spread, noise=squares / max(1, count), posteriors=posteriors
    )


def _left_out(group: _Group, weights: Floats, posterior: Floats, noise: float) -> Floats:
    """Predict the group's responses, each without its candidate, [candidates, items]."""
    errors = group.responses - group.features @ weights[group.columns].T
    # the share of a prediction that is its own response
    leverage = ((group.features @ posterior) * group.features).sum(axis=1) / noise
    predicted: Floats = group.responses - errors / (1 - np.minimum(leverage, 0.999))[:, None]
    return predicted


def _curved(responses: Floats, curve: tuple[float, float] | None) -> Floats:
    if curve is None:
        return responses
    slope, shift = curve
    scores: Floats = expit(slope * responses + shift)
    return scores


def _logistic(responses: Floats, scores: Floats) -> tuple[float, float]:
    """Fit slope and shift of a logistic curve by Newton's method, drawn towards 1 and 0."""
    answered = np.flatnonzero(np.isfinite(responses))
    chosen = answered[:: max(1, len(answered) // CURVE_ITEMS)]
    x, y = responses.flat[chosen], scores.flat[chosen]
    inputs = np.stack([x, np.ones_like(x)])
    at: Floats = np.array([1.0, 0.0])
    for _ in range(10):
        found = expit(at @ inputs)
        step = inputs @ (y - found) - (at - np.array([1.0, 0.0]))
        curvature = (inputs * np.maximum(found * (1 - found), 1e-6)) @ inputs.T + np.eye(2)
        at = np.asarray(at + np.linalg.solve(curvature, step), dtype=np.float64)
    return float(at[0]), float(at[1])
