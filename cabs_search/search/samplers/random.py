"""Random search: proposals do not depend on scores."""

from __future__ import annotations

import optuna


def random(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Make Optuna's random sampler."""
    return optuna.samplers.RandomSampler(seed=seed)
