"""Tree-structured Parzen estimator over all parameters jointly."""

from __future__ import annotations

import warnings

import optuna


def tpe(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """Make Optuna's TPE, random for the first ``startup_trials``."""
    with warnings.catch_warnings():
        # group, multivariate and constant_liar count as experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=startup_trials,
        )
