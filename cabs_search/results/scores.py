"""Scores of a record, read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Expected, Outcomes, Scored
from cabs_search.results.panel import ItemScores, Panel
from cabs_search.spec.task import Task
from cabs_search.stats.simultaneous import REPLICATES
from cabs_search.tasks.items import SPLITS, SplitName


@dataclass(frozen=True, kw_only=True)
class RecordScores:
    """Scores, labels and cost in a record, or a part of it."""

    searched: Mapping[str, Scored]
    """Candidates by recipe's key, on the search split, in the order of completion."""
    confirmed: Mapping[str, Scored]
    """Candidates by recipe's key, on the confirm split."""
    labels: Mapping[SplitName, Mapping[str, Any]]
    """Items' labels by split and task."""
    clusters: Mapping[SplitName, Mapping[str, npt.NDArray[np.int64]]]
    """Items' clusters by split and task."""
    spent: Mapping[str, float]
    """Amounts as in ``Outcomes.spent``; empty for a part of a record."""
    unfinished: tuple[int, int] = (0, 0)
    """Candidates that were not scored to the end, and their search items; 0 for a part."""

    recommended: Expected | None = None
    """Recommendation of the search; None for a part."""
    expected: tuple[Expected, ...] = ()
    """Predictions of candidates before they were scored; none for a part."""

    @classmethod
    def read(
        cls,
        outcomes: Outcomes,
        wanted: Callable[[Recipe], bool] | None = None,
        references: Collection[Recipe] = (),
    ) -> RecordScores:
        """Read a record.

        Args:
            outcomes: the record.
            wanted: tells which candidates to read; None: all.
            references: recipes read from the confirm split in any case: base and experts.

        """
        is_wanted = wanted or (lambda _: True)
        always = {recipe.key for recipe in references}
        return cls(
            searched=outcomes.scored("search", is_wanted),
            confirmed=outcomes.scored(
                "confirm", lambda recipe: recipe.key in always or is_wanted(recipe)
            ),
            labels={split: outcomes.labels(split) for split in SPLITS},
            clusters={split: outcomes.clusters(split) for split in SPLITS},
            spent=outcomes.spent() if wanted is None else {},
            unfinished=outcomes.unfinished("search") if wanted is None else (0, 0),
            recommended=outcomes.recommended() if wanted is None else None,
            expected=tuple(outcomes.expected()) if wanted is None else (),
        )

    def panel(
        self,
        tasks: Mapping[str, Task],
        seed: int,
        candidates: Mapping[str, Scored],
        split: SplitName = "confirm",
        replicates: int = REPLICATES,
    ) -> Panel:
        """Return a panel of candidates on a split; arguments as of ``Panel``."""
        item_scores = {
            name: ItemScores(tasks=scored.tasks, scores=scored.scores)
            for name, scored in candidates.items()
        }
        return Panel(tasks, seed, item_scores, self.labels[split], self.clusters[split], replicates)
