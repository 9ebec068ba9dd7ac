"""Random search: proposals do not depend on scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna


def random(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Make Optuna's random sampler."""
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)
