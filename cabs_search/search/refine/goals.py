"""Numbers that a refinement makes small: what it takes of each item's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from cabs_search.scoring.gradients import LEAST_LOSS, MOST_LOSS
from cabs_search.search.refine.paths import Floats
from cabs_search.spec.task import Task

LEAST_WIDTH = 0.1
"""Narrowest step from wrong to right, in nats."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Number that is made small of one task."""

    width: float | None
    """Log-odds over which an item goes from wrong to right; None: the loss itself counts."""
    scale: float = 1.0
    """Loss that counts as 1."""

    def values(self, losses: Floats) -> Floats:
        """Return each item's part, [items], of their losses, [items]."""
        if self.width is None:
            return losses / self.scale
        smooth: Floats = expit(-_log_odds(losses) / self.width)
        return smooth


def _log_odds(losses: Floats) -> Floats:
    odds: Floats = -np.log(np.expm1(np.clip(losses, LEAST_LOSS, MOST_LOSS)))
    return odds


def goals_of(goal: str, tasks: Mapping[str, Task], losses: Mapping[str, Any]) -> dict[str, Goal]:
    """Return the goal of each task.

    Args:
        goal: the spec's: ``score`` or ``loss``.
        tasks: by name.
        losses: those of the candidate that is refined, on all search items, by task.

    """
    found = {}
    for name, task in tasks.items():
        own = np.asarray(losses[name], dtype=float)
        if not task.kind.has_log_losses:
            found[name] = Goal(width=None, scale=max(float(own.mean()), 1e-12))
        elif goal == "loss":
            found[name] = Goal(width=None)
        else:
            width = max(float(np.median(np.abs(_log_odds(own)))), LEAST_WIDTH)
            found[name] = Goal(width=round(width, 6))
    return found
