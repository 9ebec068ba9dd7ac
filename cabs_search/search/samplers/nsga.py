"""Genetic search for a Pareto front: the next generation is bred from the best so far."""

from __future__ import annotations

import warnings

import optuna

POPULATION = 20
"""Candidates of a generation; the first is random, beside the baselines."""


def nsga2(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Make Optuna's NSGA-II, which prefers candidates that are far from others on the front."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)


def nsga3(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Make Optuna's NSGA-III, which spreads candidates over given directions."""
    with warnings.catch_warnings():
        # the class counts as experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.NSGAIIISampler(seed=seed, population_size=POPULATION)
