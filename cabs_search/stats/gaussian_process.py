"""Gaussian process over a few hundred points, for what a parametric fit leaves unexplained.

    y = mean(y) + f(x) + ε,  ε_j ~ N(0, noise_j + ν v),
    cov(f(x), f(x′)) = v (c + a_q q(x, x′) + a_m k(x, x′)),  v = var(y)

q is the kernel of a quadratic, k Matérn's with ν = 5/2; both are reduced between points with
different choices. The amplitudes, the length scale of k and the extra noise are those of a small
grid with the largest marginal likelihood. Source: Rasmussen and Williams, Gaussian Processes for
Machine Learning (2006), 2.2, 4.2.1, 5.4.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular

Floats: TypeAlias = npt.NDArray[np.float64]

LENGTHS = (0.4, 0.8, 1.6)
"""Length scales of k, in units of the typical distance of two points."""
MATERN, QUADRATIC = (0.0, 0.1, 0.4), (0.0, 0.1, 0.4)
NUGGETS = (0.05, 0.4)
CONSTANT = 0.1
"""c."""
SAME_CHOICE = 0.7
"""Correlation that is left of f for each choice in which two points differ."""


def matern(distance: Floats) -> Floats:
    """Return Matérn's kernel with ν = 5/2 at distances in length scales."""
    scaled = np.sqrt(5) * distance
    kernel: Floats = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return kernel


@dataclass(frozen=True)
class Kernel:
    """Amplitudes and length scale; one of the grid."""

    matern: float
    quadratic: float
    length: float
    nugget: float

    def between(self, x: Floats, arms: Floats, other_x: Floats, other_arms: Floats) -> Floats:
        """Return prior covariances in units of v, [points, other points]."""
        squares = (x**2).sum(1)[:, None] + (other_x**2).sum(1) - 2 * x @ other_x.T
        distance = np.sqrt(np.maximum(squares, 0) / max(1, x.shape[1])) / self.length
        differ = (arms.sum(axis=1)[:, None] + other_arms.sum(axis=1)) / 2 - arms @ other_arms.T
        quadratic = (1 + x @ other_x.T / max(1, x.shape[1])) ** 2 / 4
        shape = self.matern * matern(distance) + self.quadratic * quadratic
        covariance: Floats = CONSTANT + shape * SAME_CHOICE**differ
        return covariance

    def at(self, x: Floats) -> Floats:
        """Return prior variances in units of v, [points]."""
        quadratic = (1 + (x**2).sum(axis=1) / max(1, x.shape[1])) ** 2 / 4
        variances: Floats = CONSTANT + self.matern + self.quadratic * quadratic
        return variances


GRID = [
    Kernel(*chosen)
    for chosen in itertools.product(MATERN, QUADRATIC, LENGTHS, NUGGETS)
    if chosen[0] or chosen[2] == LENGTHS[0]  # without k, its length scale means nothing
]


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianProcess:
    """A fitted process."""

    kernel: Kernel
    x: Floats
    arms: Floats
    mean: float
    """Mean of y."""
    variance: float
    """v."""
    factor: Floats
    """Lower Cholesky factor of the covariance of y."""
    solution: Floats
    """Product of that covariance's inverse and y."""
    left_out: Floats
    """Error of each point's prediction from the others, in standard deviations, [points]."""

    def predict(self, x: Floats, arms: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of f at points, both [points]."""
        across = self.variance * self.kernel.between(x, arms, self.x, self.arms)
        explained = solve_triangular(self.factor, across.T, lower=True)
        left = self.variance * self.kernel.at(x) - (explained**2).sum(axis=0)
        return self.mean + across @ self.solution, np.sqrt(np.maximum(left, 1e-12))

    def means(self, x: Floats, arms: Floats) -> Floats:
        """Predict the mean of f at points, [points]."""
        across = self.variance * self.kernel.between(x, arms, self.x, self.arms)
        means: Floats = self.mean + across @ self.solution
        return means

    def with_expected(self, x: Floats, arms: Floats, noise: float) -> GaussianProcess:
        """Add points whose values will be as predicted: no mean changes, deviations shrink."""
        across = self.variance * self.kernel.between(x, arms, self.x, self.arms)
        within = self.variance * self.kernel.between(x, arms, x, arms)
        within[np.diag_indices(len(x))] += noise + self.kernel.nugget * self.variance
        lower = solve_triangular(self.factor, across.T, lower=True).T
        corner = np.linalg.cholesky(within - lower @ lower.T + 1e-12 * np.eye(len(x)))
        return replace(
            self,
            x=np.concatenate([self.x, x]),
            arms=np.concatenate([self.arms, arms]),
            factor=np.block([[self.factor, np.zeros((len(self.x), len(x)))], [lower, corner]]),
            solution=np.concatenate([self.solution, np.zeros(len(x))]),
        )


def fit(
    x: Floats, arms: Floats, y: Floats, noise: Floats, kernel: Kernel | None = None
) -> GaussianProcess:
    """Fit a process.

    Args:
        x: λ, scaled to about [-1, 1], [points, λ].
        arms: 1 where a point has a choice, else 0, [points, choices].
        y: values, [points].
        noise: variance of each value, [points].
        kernel: the one to use; None: the best of the grid.

    """
    mean = float(y.mean())
    y = y - mean
    variance = max(float(y.var()), float(noise.mean()) / 10, 1e-12)
    tried = []
    for one in GRID if kernel is None else [kernel]:
        covariance = variance * one.between(x, arms, x, arms)
        covariance[np.diag_indices(len(y))] += noise + one.nugget * variance
        factor: Floats = np.linalg.cholesky(covariance).astype(np.float64, copy=False)
        whitened = solve_triangular(factor, y, lower=True)
        likelihood = -0.5 * whitened @ whitened - np.log(np.diag(factor)).sum()
        tried.append((float(likelihood), one, factor))
    _, best, factor = max(tried, key=lambda found: found[0])
    solution = cho_solve((factor, True), y)
    precision = (solve_triangular(factor, np.eye(len(y)), lower=True) ** 2).sum(axis=0)
    return GaussianProcess(
        kernel=best,
        x=x,
        arms=arms,
        mean=mean,
        variance=variance,
        factor=factor,
        solution=solution,
        left_out=solution / np.sqrt(precision),
    )
