"""A record's scores, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Outcomes, Scored
from cabs_search.results.panel import ItemScores, Panel
from cabs_search.search.candidates import reference_recipes
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import SPLITS, SplitName


@dataclass(frozen=True, kw_only=True)
class RecordScores:
    """A record, read once."""

    searched: Mapping[str, Scored]
    """By recipe's key, on the search split, in the order they were completed."""
    confirmed: Mapping[str, Scored]
    """By recipe's key, on the confirm split."""
    labels: Mapping[SplitName, Mapping[str, Any]]
    """The items' truth by split and task."""
    clusters: Mapping[SplitName, Mapping[str, npt.NDArray[np.int64]]]
    """Which items stand or fall together, by split and task."""
    spent: Mapping[str, float]
    """See ``Outcomes.spent``; empty for a part of a record."""

    @classmethod
    def read(
        cls, spec: Spec, outcomes: Outcomes, wanted: Callable[[Recipe], bool] | None = None
    ) -> RecordScores:
        """All of a record; ``wanted``: or just these recipes, with base and experts, and not what
        all others took.
        """
        alone, is_wanted = (
            {recipe.key for recipe in reference_recipes(spec.experts).values()},
            wanted or (lambda _: True),
        )
        return cls(
            searched=outcomes.scored("search", is_wanted),
            confirmed=outcomes.scored(
                "confirm", lambda recipe: recipe.key in alone or is_wanted(recipe)
            ),
            labels={split: outcomes.labels(split) for split in SPLITS},
            clusters={split: outcomes.clusters(split) for split in SPLITS},
            spent=outcomes.spent() if wanted is None else {},
        )

    def panel(
        self, spec: Spec, found: Mapping[str, Scored], split: SplitName = "confirm", **options: Any
    ) -> Panel:
        """Candidates side by side on a split."""
        on_items = {
            name: ItemScores(tasks=scored.tasks, scores=scored.scores)
            for name, scored in found.items()
        }
        return Panel(spec, on_items, self.labels[split], self.clusters[split], **options)
