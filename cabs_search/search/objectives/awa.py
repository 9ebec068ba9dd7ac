"""Fitness of CABS+ (arXiv 2608.12842): how much losses differ from those at λ = 1.

A loss that grows weighs a hundred times as much as one that shrinks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cabs_search.merging.recipe import make_recipe
from cabs_search.record.entries import Scored
from cabs_search.search.candidates import Candidates
from cabs_search.search.objectives.base import Objective
from cabs_search.spec.study import Spec

WORSE = 100.0
"""Weight of a loss that grows."""


@dataclass(frozen=True, kw_only=True)
class Awa(Objective):
    """Minus the fitness, which CABS+ minimizes."""

    losses: Mapping[str, float] | None = None
    """Mean losses by task at λ = 1, once they are known."""

    def given(self, references: Mapping[str, Scored]) -> Objective:
        """See ``Objective``."""
        losses = references[self.references[0].key].losses
        for task, loss in losses.items():
            if not loss > 0:
                raise ValueError(
                    "search.objective: awa needs losses above 0 where all λ are 1, but that of"
                    f" {task} is {loss:g}"
                )
        return replace(self, losses=losses)

    def values(self, scored: Scored) -> tuple[float, ...]:
        """See ``Objective``."""
        # 0.0 - x instead of -x: no negative zero at λ = 1
        return () if self.losses is None else (0.0 - fitness(scored.losses, self.losses),)


def fitness(losses: Mapping[str, float], at_one: Mapping[str, float]) -> float:
    """Return the sum over tasks of 100 Δ if Δ > 0, else Δ: a loss's relative change from λ = 1.

    Args:
        losses: mean losses by task.
        at_one: those where all λ are 1.

    """
    changes = [(loss - at_one[task]) / at_one[task] for task, loss in losses.items()]
    return sum(WORSE * change if change > 0 else change for change in changes)


def awa(spec: Spec) -> Objective:
    """Make the objective; λ = 1 is that of the space's first method with its first settings."""
    candidates = Candidates.of(spec)
    method = candidates.method(spec.space.method[0])
    at_one = make_recipe(method, dict.fromkeys(candidates.experts, 1.0))
    return Awa(
        text=(
            "The search maximized the objective of CABS+: minus its fitness, of the tasks' mean"
            " losses against those where all λ are 1. The score is the mean of the tasks' metrics."
        ),
        names=("awa",),
        references=(at_one,),
        at_one=at_one,
        ranks_references=True,
    )
