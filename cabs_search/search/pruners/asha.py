"""Asynchronous successive halving: at each look the better part of the candidates goes on."""

from __future__ import annotations

import optuna

REDUCTION = 3
"""One candidate of so many goes on at each look."""


def asha(candidates: int) -> optuna.pruners.BasePruner:  # noqa: ARG001
    """Make Optuna's pruner, whose resource is the number of rounds scored."""
    return optuna.pruners.SuccessiveHalvingPruner(reduction_factor=REDUCTION)
