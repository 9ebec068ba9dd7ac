"""Paths of an optimizer that can be broken off and taken up again.

An optimizer is run anew on the values that are known, until it asks for one that is not: it needs
no state of its own, and a killed search goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import optimize

from cabs_search.spec.refine import Refine

Floats: TypeAlias = npt.NDArray[np.float64]
DIGITS = 4
"""Digits of λ after the point: the same λ on machines whose sums differ in the last bits."""
STEP = 0.05
"""Length of the first step of L-BFGS, as a part of the start's length."""
ADAM_STEP = 0.3
"""Length of Adam's first step over all λ, as a part of the start's mean |λ|."""
DAMPING = 0.3
"""Part of the mean curvature that is added to that of each λ: estimates by a few blocks are rough.
"""
MOMENTUM, SQUARES = 0.9, 0.99
"""Weights of the past in Adam's means of gradients and of their squares (arXiv 1412.6980)."""
AVERAGED = 0.5
"""Last part of Adam's steps, whose mean is the end of a path (Polyak and Juditsky, 1992)."""


class Value(NamedTuple):
    """Loss at some λ, and its gradient."""

    loss: float
    gradient: Floats
    """[λ]."""


class _Done(Exception):  # noqa: N818 (no error)
    """Leaves an optimizer whose steps are spent."""


class Path(NamedTuple):
    """Steps of an optimizer."""

    points: list[Floats]
    """λ at each step."""
    losses: list[float]
    """Value that is minimized, at each step."""
    end: Floats
    """λ that it found."""

    def end_after(self, steps: int) -> Floats:
        """Return what L-BFGS would have found with fewer steps."""
        if steps >= len(self.points):
            return self.end
        return self.points[int(np.argmin(self.losses[:steps]))]


Evaluate: TypeAlias = Callable[[Floats, int], Value]
"""Returns the value at some λ in a step; raises what it likes where it is not known yet."""


def follow(
    settings: Refine,
    start: Floats,
    ridge: float,
    evaluate: Evaluate,
    curvature: Callable[[Floats], Floats],
) -> Path:
    """Follow the gradient from a start for as many steps as are set.

    L-BFGS moves λ in units of 1 / √curvature, in which all are about as steep: without this, a few
    large tensors set the length of every step.

    Args:
        settings: optimizer and steps.
        start: λ, [λ]; a penalty keeps others near it.
        ridge: weight of half the mean squared distance from it.
        evaluate: returns values; what it raises leaves the path.
        curvature: estimates the curvature of the loss in each λ, at λ whose value is known.

    """
    points, losses, known = list[Floats](), list[float](), set[bytes]()

    def penalized(lambdas: Floats) -> Value:
        rounded = np.round(lambdas, DIGITS) + 0.0
        is_new = rounded.tobytes() not in known
        if is_new and len(points) == settings.steps:
            raise _Done
        value = evaluate(rounded, len(points))
        away = rounded - start
        loss = value.loss + ridge * float(np.mean(away**2)) / 2
        if is_new:
            known.add(rounded.tobytes())
            points.append(rounded)
            losses.append(loss)
        return Value(loss, value.gradient + ridge * away / len(away))

    if settings.optimizer == "adam":
        length = ADAM_STEP * max(float(np.abs(start).mean()), 0.1) / len(start) ** 0.5
        return _adam(settings.steps, start, length, penalized, points, losses)

    length = STEP * max(float(np.linalg.norm(start)), 0.1 * len(start) ** 0.5)
    gradient = penalized(start).gradient
    if not gradient.any():
        return Path(points, losses, points[0])
    curved = curvature(points[0]) + ridge / len(start)
    curved += DAMPING * curved.mean()
    newton, units = gradient / curved, 1 / np.sqrt(curved)
    # scipy's first step has length 1: one of ``length`` in λ
    units *= length * float(np.linalg.norm(units * gradient) / np.linalg.norm(newton))

    def scaled(x: Floats) -> tuple[float, Floats]:
        value = penalized(start + units * x)
        return value.loss, units * value.gradient

    with suppress(_Done):
        optimize.minimize(scaled, np.zeros_like(start), jac=True, method="L-BFGS-B")
    return Path(points, losses, points[int(np.argmin(losses))])


def _adam(
    steps: int,
    start: Floats,
    length: float,
    evaluate: Callable[[Floats], Value],
    points: list[Floats],
    losses: list[float],
) -> Path:
    """Follow Adam, whose steps become shorter; the end is the mean of the last ones."""
    lambdas, mean, squares = start.copy(), np.zeros_like(start), np.zeros_like(start)
    last: list[Floats] = []
    for step in range(steps):
        gradient = evaluate(lambdas).gradient
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        squares = SQUARES * squares + (1 - SQUARES) * gradient**2
        unbiased = mean / (1 - MOMENTUM ** (step + 1))
        spread = np.sqrt(squares / (1 - SQUARES ** (step + 1)))
        lambdas = lambdas - length * (1 - step / steps) * unbiased / (spread + 1e-12)
        if step + 1 >= steps * (1 - AVERAGED):
            last.append(lambdas)
    end = np.round(np.stack(last).mean(axis=0), DIGITS) + 0.0
    return Path(points, losses, end)
