"""Scores of a record, read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Confirmation, Expected, Scored
from cabs_search.record.evaluations import Notes
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.sampled import SampledRun, SampledTexts
from cabs_search.results.panel import ItemScores, Panel
from cabs_search.results.refinement import Refinement, refinement_of
from cabs_search.search.candidates import Candidates
from cabs_search.search.objectives.base import Objective
from cabs_search.search.objectives.registry import objective_of, outsiders, with_references
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task
from cabs_search.stats.aggregate import MEAN
from cabs_search.stats.simultaneous import REPLICATES
from cabs_search.tasks.items import SPLITS, SplitName


class PartScore(NamedTuple):
    """Mean score of a candidate on a part of the items."""

    score: float
    deviation: float
    """Standard deviation of its difference from the score on all items, by chance of the items."""


def _part_score(outcomes: Outcomes, recipe: Recipe) -> PartScore:
    by_block = outcomes.block_results(recipe, "search").values()
    tasks = {task for by_task in by_block for task in by_task}
    of_task = [np.concatenate([by_task[task][0] for by_task in by_block]) for task in tasks]
    parts = [part for part in of_task if len(part)]
    variances = [part.var() / len(part) for part in parts]
    means = [part.mean() for part in parts]
    return PartScore(float(np.mean(means)), float(np.sqrt(np.sum(variances)) / len(parts)))


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

    confirmation: Confirmation | None = None
    """Rows that ended early; None where there were no looks, and for a part."""
    recommended: Expected | None = None
    """Recommendation of the search; None for a part."""
    expected: tuple[Expected, ...] = ()
    """Predictions of candidates before they were scored; none for a part."""
    stopped: Mapping[str, PartScore] = field(default_factory=dict)
    """Mean scores of predicted candidates that were stopped, by recipe's key."""
    objective: Objective = field(default_factory=Objective)
    """Objective of the search, with its references as far as they are scored."""
    refinement: Refinement | None = None
    """Findings of refining by gradient; None for a part."""
    refined_keys: frozenset[str] = frozenset()
    """Candidates that were refined by gradient, which no search proposed, by recipe's key."""
    sampled: tuple[SampledRun, ...] = ()
    """Whole sampled runs, in the order of their seeds; none for a part."""
    reference_items: int = 0
    """Search items of what the objective compares with and is no candidate."""

    @classmethod
    def read(
        cls,
        outcomes: Outcomes,
        spec: Spec,
        wanted: Callable[[Recipe], bool] | None = None,
        references: Collection[Recipe] = (),
    ) -> RecordScores:
        """Read a record.

        Args:
            outcomes: the record.
            spec: the study, whose objective makes one score of the tasks' metrics.
            wanted: tells which candidates to read; None: all.
            references: recipes read from the confirm split in any case: base and experts.

        """
        is_wanted = wanted or (lambda _: True)
        always = {recipe.key for recipe in references}
        unbound = objective_of(spec)
        compared = {r.key: outcomes.scored_one("search", r) for r in unbound.references}
        objective = with_references(unbound, lambda r: compared[r.key]) or unbound
        apart = outsiders(unbound, Candidates.of(spec))
        searched = outcomes.scored("search", lambda r: r.key not in apart and is_wanted(r))
        confirmation = outcomes.confirmation() if wanted is None else None
        confirmed = outcomes.scored(
            "confirm",
            lambda r: r.key in always or is_wanted(r),
            confirmation.ended if confirmation else (),
        )
        if objective.aggregate is None:  # nothing can be judged yet
            searched, confirmed = {}, {}
        notes, refines = Notes(outcomes), spec.search.refine is not None
        expected = outcomes.expected() if wanted is None else []
        begun = outcomes.done_blocks
        generates = any(task.kind.generates for task in spec.tasks.values())
        parts = [one.recipe for one in expected if one.recipe.key not in searched]
        stopped = [recipe for recipe in parts if begun(recipe, "search")]
        if spec.search.objective != "mean" or not all(
            t.measure.is_mean for t in spec.tasks.values()
        ):
            stopped = []  # a mean of items' scores says nothing
        return cls(
            searched={key: objective.applied(s) for key, s in searched.items()},
            confirmed={key: objective.aggregated(s) for key, s in confirmed.items()},
            objective=objective,
            reference_items=sum(s.items for key, s in compared.items() if s and key in apart),
            labels={split: outcomes.labels(split) for split in SPLITS},
            clusters={split: outcomes.clusters(split) for split in SPLITS},
            spent=outcomes.spent() if wanted is None else {},
            unfinished=outcomes.unfinished("search") if wanted is None else (0, 0),
            confirmation=confirmation,
            recommended=outcomes.recommended() if wanted is None else None,
            refinement=refinement_of(notes.found) if wanted is None and refines else None,
            refined_keys=frozenset(notes.refined),
            expected=tuple(expected),
            sampled=(
                tuple(SampledTexts(outcomes, spec.tasks).runs())
                if generates and wanted is None
                else ()
            ),
            stopped={recipe.key: _part_score(outcomes, recipe) for recipe in stopped},
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
        labels, clusters = self.labels[split], self.clusters[split]
        aggregate = self.objective.aggregate or MEAN
        return Panel(tasks, seed, item_scores, labels, clusters, replicates, aggregate)
