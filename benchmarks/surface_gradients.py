"""Search with a surface that also learns gradients of λ, against one that learns values alone.

    python -m benchmarks.surface_gradients [--spaces NAME ...] [--of items] [--price N] [--seeds N]

A backward pass costs two forward passes, so an item with its gradient counts as three. It tells the
gradient of the mean of a block's items, by task, which the surface takes for that of each of them.
With ``--of items`` it is given each item's own, without error, which takes more than a backward
pass (``--price``).

Replays are those of ``search_rivals``, in spaces without choices. A gradient is a response with the
derivatives of the features, times a factor, by which the error of one weighs as much as that of a
value.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import optuna
from scipy import stats

from benchmarks.landscapes import SPACES
from benchmarks.search_rivals import (
    BLOCKS,
    STARTUP,
    Game,
    block_of,
    emulated,
    learn,
    recommended,
    surface_study,
)
from cabs_search.search import surface as score_model
from cabs_search.search.surface import Answers
from cabs_search.stats import surface

Floats = npt.NDArray[np.float64]
BUDGETS = (3, 5, 10)
"""Full evaluations at which what is recommended is judged."""
STEP = 1e-3
"""Half of the difference of λ, scaled to [-1, 1], by which derivatives are taken."""
FACTORS = (0.0, 0.5, 1.0)
"""Factors of gradients in the fit; 0: none are asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WithGradients(Answers):
    """Results of one candidate with gradients in its λ, scaled to [-1, 1]."""

    slopes: Floats
    """Derivatives of the features, [λ, features]."""
    gradients: Floats
    """Derivatives of the responses, NaN where an item is not scored, [λ, items]."""


def with_gradients(
    game: Game, lambdas: Floats, own: Mapping[str, Answers], *, of_mean: bool
) -> dict[str, Answers]:
    """Add gradients to a candidate's results: each item's own, or their mean."""
    emulator = game.emulator
    x = emulator.scaled(lambdas)
    steps = STEP * np.eye(len(x))
    none = np.empty((len(x), 0))
    ahead, behind = (surface.polynomial(x + by, none)[0] for by in (steps, -steps))
    odds = [emulator.expected(x + by, np.zeros(len(x), int)) for by in (steps, -steps)]
    rises = (odds[0] - odds[1]) / (2 * STEP)
    found: dict[str, Answers] = {}
    for task, answers in own.items():
        rise = np.where(np.isfinite(answers.responses), rises[:, game.search[task]], np.nan)
        if of_mean:
            mean = np.nanmean(rise, axis=1, keepdims=True)
            rise = np.where(np.isfinite(rise), mean, np.nan)
        found[task] = WithGradients(
            scores=answers.scores,
            responses=answers.responses,
            slopes=(ahead - behind) / (2 * STEP),
            gradients=rise,
        )
    return found


def fit_surface(
    features: Floats,
    scales: Floats,
    answers: Sequence[WithGradients],
    keys: Sequence[Hashable],
    start: score_model._Fitted | None,
    *,
    factor: float,
) -> score_model._Fitted:
    """Fit a task's surface to values and gradients; takes the place of the score model's own."""
    responses = np.stack([own.responses for own in answers])
    scores = np.stack([own.scores for own in answers])
    fitted = surface.fit(
        np.concatenate([features, *(factor * own.slopes for own in answers)]),
        scales,
        np.concatenate([responses, *(factor * own.gradients for own in answers)]),
        start=start.surface if start else None,
    )
    left_out = fitted.left_out[: len(answers)]
    curve = surface._logistic(left_out, scores)
    fitted = replace(fitted, curve=curve, left_out=surface._curved(left_out, curve))
    rows = {key: row for row, key in enumerate(keys)}
    return score_model._Fitted(fitted, rows, score_model._differences(scores, fitted.left_out))


def play(seed: int, *, space: str, factor: float, of_mean: bool, price: int) -> list[float]:
    """Return the fresh score of what is recommended at each budget.

    Args:
        seed: of the search.
        space: name of the landscape.
        factor: of gradients in the fit; 0: none are asked for.
        of_mean: whether gradients are those of a block's mean, else each item's.
        price: items that one with its gradient costs.

    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    game = Game(emulated(space), seed)
    sampler, study = surface_study(game, seed, STARTUP // 2 if factor else STARTUP)
    own_fit = partial(fit_surface, factor=factor) if factor else score_model._fit_surface
    found = []
    with patch.object(score_model, "_fit_surface", own_fit):
        for budget in BUDGETS:
            while game.spent < budget - 1e-9:
                trial = study.ask()
                point = game.suggest(trial)
                answers = game.answers(point, [block_of(trial)])
                if factor:
                    answers = with_gradients(game, point[0], answers, of_mean=of_mean)
                learn(study, trial, answers)
                game.spent += (price if factor else 1) / BLOCKS
            found.append(game.fresh(recommended(sampler, study, game)))
    return found


def main() -> None:
    """Replay, and print scores and paired differences to values alone, in points."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=24)
    plain = [name for name in SPACES if "order" not in SPACES[name] and "nm" not in SPACES[name]]
    parser.add_argument("--spaces", nargs="*", default=["task-arithmetic"], choices=plain)
    parser.add_argument("--of", choices=("items", "mean"), default="mean")
    parser.add_argument("--price", type=int, default=3)
    parser.add_argument("--factors", nargs="*", type=float, default=list(FACTORS))
    options = parser.parse_args()
    head = [f"at {budget} | difference" for budget in BUDGETS]
    print(f"| space | gradients times | {' | '.join(head)} |")
    print("|---" * (2 + 2 * len(BUDGETS)) + "|")
    with ProcessPoolExecutor(2) as pool:
        for space in options.spaces:
            values: Floats | None = None
            for factor in options.factors:
                replay = partial(
                    play,
                    space=space,
                    factor=factor,
                    of_mean=options.of == "mean",
                    price=options.price,
                )
                found = pool.map(replay, range(options.seeds))
                scores = 100 * np.array(list(found))
                values = scores if values is None else values
                print(f"| {space} | {factor} | {' | '.join(cells(scores, values))} |", flush=True)


def cells(scores: Floats, values: Floats) -> list[str]:
    """Write mean scores, and their differences to others with 95 % intervals."""
    written = []
    for own, other in zip(scores.T, values.T, strict=True):
        gained = own - other
        margin = stats.t.ppf(0.975, len(own) - 1) * stats.sem(gained)
        interval = f"{gained.mean():+.1f} ± {margin:.1f}" if gained.any() else ""
        written.append(f"{own.mean():.1f} | {interval}")
    return written


if __name__ == "__main__":
    main()
