"""Interface of an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
from cabs_search.stats.aggregate import MEAN, Aggregate


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Number to maximize: a candidate's score, unless a subclass says otherwise."""

    aggregate: Aggregate | None = MEAN
    """Rule that makes one score of the tasks' metrics; None until references are scored."""
    text: str = ""
    """Sentence that says in reports what the score is; empty: the mean of the tasks' metrics."""
    names: tuple[str, ...] = ("score",)
    """Names of the numbers that the search maximizes."""
    references: tuple[Recipe, ...] = ()
    """Recipes to be scored on all search items before any candidate is judged."""
    ranks_references: bool = False
    """Whether references are candidates, too."""
    at_one: Recipe | None = None
    """The candidate whose losses those of others are compared with, all of whose λ are 1."""

    def given(self, references: Mapping[str, Scored]) -> Objective:
        """Return the objective that knows its references.

        Args:
            references: them, on the search split, by the recipe's key.

        Raises:
            ValueError: nothing can be compared with one of them.

        """
        del references
        return self

    def values(self, scored: Scored) -> tuple[float, ...]:
        """Return what the search maximizes; empty: the score."""
        del scored
        return ()

    def applied(self, scored: Scored) -> Scored:
        """Return a candidate's results on the search split, judged by this objective."""
        return replace(self.aggregated(scored), values=self.values(scored))

    def aggregated(self, scored: Scored) -> Scored:
        """Return results on any split with the score of this objective."""
        return replace(scored, aggregate=self.aggregate or MEAN)
