"""Judge of a search: what a candidate is worth by the objective, once its references are scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.candidates import Candidates
from cabs_search.search.objectives.base import Objective
from cabs_search.search.objectives.registry import objective_of, outsiders, with_references
from cabs_search.spec.study import Spec
from cabs_search.stats.race import Floats


class Judge:
    """Applies the objective of a spec; hands out the references that are not scored yet."""

    def __init__(self, spec: Spec, outcomes: Outcomes) -> None:
        """Read what is on record of the references.

        Raises:
            ValueError: nothing can be compared with one of them.

        """
        self._tasks, self._outcomes = tuple(spec.tasks), outcomes
        unbound = objective_of(spec)
        self._objective: Objective = unbound
        self.names = unbound.names
        """Names of what the search maximizes."""
        self.is_ready = False
        """True once candidates can be judged."""
        self.references = {recipe.key for recipe in unbound.references}
        """Keys of what candidates are compared with."""
        self._outsiders = outsiders(unbound, Candidates.of(spec))
        self.first_candidates = tuple(r for r in unbound.references if unbound.ranks_references)
        """References that are candidates: they cost nothing more."""
        self._waiting = deque(r for r in unbound.references if self._find(r) is None)
        self.update()

    def _find(self, recipe: Recipe) -> Scored | None:
        return self._outcomes.scored_one("search", recipe)

    def update(self) -> None:
        """Take in references that have been scored; ValueError as when it is made."""
        if not self.is_ready and (bound := with_references(self._objective, self._find)):
            self._objective, self.is_ready = bound, True

    def put_back(self, recipe: Recipe) -> None:
        """Keep a reference for later."""
        self._waiting.append(recipe)

    def next_reference(self) -> Recipe | None:
        """Return a reference to score; None if there is none left."""
        return self._waiting.popleft() if self._waiting else None

    def is_outsider(self, recipe: Recipe) -> bool:
        """Tell whether a recipe is a reference and no candidate."""
        return recipe.key in self._outsiders

    def judged(self, scored: Scored) -> Scored:
        """Return a candidate's results with their score and what the search maximizes."""
        return self._objective.applied(scored)

    @property
    def weights(self) -> dict[str, float] | None:
        """Weights by task, once the score is known to be a weighted sum of the tasks' metrics."""
        aggregate = self._objective.aggregate
        return None if aggregate is None else aggregate.weights(sorted(self._tasks))

    @property
    def at_one(self) -> Recipe | None:
        """The candidate with all λ = 1, if the objective compares losses with its."""
        return self._objective.at_one

    def weighed(self, rounds: Floats) -> Floats:
        """Return scores times their task's weight, the largest of which is 1.

        Args:
            rounds: scores of rounds of items, tasks in the order of their names, [rounds, tasks].

        """
        assert self.weights is not None, "the objective is no weighted sum"
        weights = np.array(list(self.weights.values()))
        weighed: Floats = rounds * (weights / weights.max())
        return weighed

    def partial(self, blocks: Iterable[Mapping[str, tuple[Floats, Floats]]]) -> float:
        """Return the score by the items of some blocks, given as scores and losses by task."""
        assert self._objective.aggregate is not None
        parts = list(blocks)
        scores = {task: np.concatenate([part[task][0] for part in parts]) for task in self._tasks}
        means = {task: float(own.mean()) for task, own in scores.items() if len(own)}
        # a block may have no item of a task with few: it counts as the others do
        others = float(np.mean(list(means.values())))
        return float(self._objective.aggregate({t: means.get(t, others) for t in self._tasks}))
