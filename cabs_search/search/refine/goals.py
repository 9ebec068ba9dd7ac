"""Losses that a refinement makes small: those at each task's best temperature.

Experts' heads are more or less certain of their answers than is right on a merged model, some many
times. A mean of such losses is that of a few confident errors, and falls when all answers become
less certain. At the temperature that fits the start best, becoming more or less certain gains
nothing at first, and what is left to gain is in the answers (Guo et al., arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cabs_search.scoring.forward import ENTROPY, TEMPERATURES
from cabs_search.search.objectives.awa import WORSE
from cabs_search.search.refine.paths import Floats
from cabs_search.spec.refine import Objective
from cabs_search.spec.task import Task

LEAST = 1e-12
"""Least loss that others are compared with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Goal:
    """Loss of one task."""

    temperature: float = 1.0
    """Number that logits are divided by, or ``ENTROPY``."""
    scale: float = 1.0
    """Loss that counts as 1."""
    score_scale: float = 1.0
    """Difference of an item's scores that counts as 1."""
    at_one: Sequence[Floats] = ()
    """Losses of each block's items at λ = 1, if the goal is the fitness of CABS+."""

    def on(self, blocks: Sequence[int]) -> Goal:
        """Return the goal on some blocks: a fold's losses are compared with those of its items."""
        if not self.at_one:
            return self
        mean = float(np.concatenate([self.at_one[block] for block in blocks]).mean())
        return replace(self, scale=max(mean, LEAST))

    def of(self, loss: float) -> float:
        """Return the value of a mean loss: what is made small."""
        scaled = loss / self.scale
        return 1 + (scaled - 1) * self._weight(loss) if self.at_one else scaled

    def slope(self, loss: float) -> float:
        """Return the derivative of the value in the mean loss."""
        return self._weight(loss) / self.scale

    def _weight(self, loss: float) -> float:
        return WORSE if self.at_one and loss > self.scale else 1.0


def goals_of(
    objective: Objective,
    tasks: Mapping[str, Task],
    losses: Mapping[str, float],
    by_temperature: Mapping[str, Floats],
    at_one: Mapping[str, Sequence[Floats]] | None = None,
) -> dict[str, Goal]:
    """Return the goal of each task.

    Args:
        objective: quantity that is made small.
        tasks: by name.
        losses: mean losses of the candidate that is refined, by task; those of kinds without
            log-probabilities are compared with these.
        by_temperature: sums of its losses at ``TEMPERATURES``, by task; none: temperatures are 1.
        at_one: losses of each block's items at λ = 1, by task, if the goal is the fitness of CABS+.

    """
    if objective == "entropy":
        return {name: Goal(temperature=ENTROPY) for name in tasks}
    found = {}
    for name, task in tasks.items():
        size = 1.0 if task.kind.has_log_losses else max(losses[name], LEAST)
        if at_one is not None:
            found[name] = Goal(score_scale=size, at_one=at_one[name])
        elif not task.kind.has_log_losses:
            found[name] = Goal(scale=size, score_scale=size)
        elif name in by_temperature:
            sums = np.nan_to_num(by_temperature[name], nan=np.inf)
            found[name] = Goal(temperature=TEMPERATURES[int(np.argmin(sums))])
        else:
            found[name] = Goal()
    return found
