"""Quasi-random search: points that cover the space more evenly than random ones."""

from __future__ import annotations

import warnings

import optuna


def quasi_random(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Make Optuna's sampler of a scrambled Sobol sequence."""
    with warnings.catch_warnings():
        # the class counts as experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.QMCSampler(
            qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False
        )
