"""Gaussian process over the parameters that all methods share."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial


def gp(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """Make Optuna's Gaussian process sampler, random for the first ``startup_trials``."""
    return OneThreadGPSampler(
        seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False
    )


class OneThreadGPSampler(optuna.samplers.GPSampler):  # type: ignore[misc]
    """Optuna's sampler, in one thread of torch.

    Several would wait for cores that workers keep busy: a proposal takes twenty times as long.
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample with torch's number of threads set to 1 meanwhile."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            params: dict[str, Any] = super().sample_relative(study, trial, search_space)
            return params
        finally:
            torch.set_num_threads(threads)
