"""Losses that a refinement makes small: those at each task's best temperature.

Experts' heads are more or less certain of their answers than is right on a merged model, some many
times. A mean of such losses is that of a few confident errors, and falls when all answers become
less certain. At the temperature that fits the start best, becoming more or less certain gains
nothing at first, and what is left to gain is in the answers (Guo et al., arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cabs_search.scoring.forward import ENTROPY, TEMPERATURES
from cabs_search.search.objectives.awa import WORSE
from cabs_search.search.refine.paths import Floats
from cabs_search.spec.refine import Objective
from cabs_search.spec.task import Task


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Loss of one task."""

    temperature: float = 1.0
    """Number that logits are divided by, or ``ENTROPY``."""
    scale: float = 1.0
    """Loss that counts as 1."""
    score_scale: float = 1.0
    """Difference of an item's scores that counts as 1."""
    worse: float = 1.0
    """Weight of what a mean loss has above its scale; 1: that of all below."""

    def of(self, loss: float) -> float:
        """Return the value of a mean loss: what is made small."""
        scaled = loss / self.scale
        return scaled + (self.worse - 1) * max(0.0, scaled - 1)

    def slope(self, loss: float) -> float:
        """Return the derivative of the value in the mean loss."""
        return (self.worse if loss > self.scale else 1.0) / self.scale


def goals_of(
    objective: Objective,
    tasks: Mapping[str, Task],
    losses: Mapping[str, float],
    by_temperature: Mapping[str, Floats],
    at_one: Mapping[str, float] | None = None,
) -> dict[str, Goal]:
    """Return the goal of each task.

    Args:
        objective: quantity that is made small.
        tasks: by name.
        losses: mean losses of the candidate that is refined, by task; those of kinds without
            log-probabilities are compared with these.
        by_temperature: sums of its losses at ``TEMPERATURES``, by task; none: temperatures are 1.
        at_one: mean losses by task at λ = 1, if the goal is the fitness of CABS+.

    """
    if objective == "entropy":
        return {name: Goal(temperature=ENTROPY) for name in tasks}
    if at_one is not None:
        return {name: Goal(scale=at_one[name], worse=WORSE) for name in tasks}
    found = {}
    for name, task in tasks.items():
        if not task.kind.has_log_losses:
            size = max(losses[name], 1e-12)
            found[name] = Goal(scale=size, score_scale=size)
        elif name in by_temperature:
            sums = np.nan_to_num(by_temperature[name], nan=np.inf)
            found[name] = Goal(temperature=TEMPERATURES[int(np.argmin(sums))])
        else:
            found[name] = Goal()
    return found
