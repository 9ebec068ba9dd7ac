"""CMA-ES over the λ that all methods share, from the middle of their range."""

from __future__ import annotations

import optuna


def cma_es(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """Make Optuna's CMA-ES, random for the first ``startup_trials``."""
    return optuna.samplers.CmaEsSampler(
        seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False
    )
