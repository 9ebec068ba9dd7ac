"""Rows of the leaderboard that are scored on the confirm split."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Scored
from cabs_search.search.candidates import Candidates, best_of, ranked


def rows_to_confirm(candidates: Candidates, scored: Mapping[str, Scored], top: int) -> list[Recipe]:
    """Choose the best shared-λ candidate of each baseline method, and the ``top`` of all.

    With several objectives these are on the Pareto front.
    """
    rows = [s.recipe for s in candidates.best_shared(scored).values()]
    rows += [s.recipe for s in best_of(scored.values(), top)]
    return list({recipe.key: recipe for recipe in rows}.values())


def rows_to_compare(
    candidates: Candidates, scored: Mapping[str, Scored], recommended: Recipe | None
) -> list[Recipe]:
    """Choose what the verdict is about: the best found, what is recommended, the best baseline."""
    groups = (scored.values(), candidates.best_shared(scored).values())
    best = [ranked(group)[0].recipe for group in groups if group]
    return [*best, *([recommended] if recommended else [])]


class ConfirmQueue:
    """Recipes to confirm: base and experts at any time, candidates once the search is over."""

    def __init__(self, references: Iterable[Recipe]) -> None:
        self._references: set[str] = set()
        self._waiting: deque[Recipe] = deque()
        self.has_candidates = False
        """True once candidates were chosen; then no more rows will come."""
        self.add_references(references)

    def __len__(self) -> int:
        return len(self._waiting)

    def add_references(self, recipes: Iterable[Recipe]) -> None:
        """Add base and experts, which do not depend on the search."""
        for recipe in recipes:
            self._references.add(recipe.key)
            self._waiting.append(recipe)

    def add_candidates(self, recipes: Iterable[Recipe], recommended: Recipe | None = None) -> None:
        """Add what the search has found, and first what it recommends."""
        first = [] if recommended is None else [recommended]
        by_key = {recipe.key: recipe for recipe in (*first, *recipes)}
        self._waiting.extend(by_key.values())
        self.has_candidates = True

    def extend(self, recipes: Iterable[Recipe]) -> None:
        """Add recipes of which more items are to be scored."""
        self._waiting.extend(recipes)

    def pop(self) -> Recipe:
        """Return the next recipe."""
        return self._waiting.popleft()

    def put_back(self, recipe: Recipe) -> None:
        """Keep a recipe for later."""
        self._waiting.append(recipe)

    def release(self, orphaned: Iterable[Recipe]) -> list[Recipe]:
        """Empty the queue; return base and experts of it and of ``orphaned``."""
        rows = [r for r in (*self._waiting, *orphaned) if r.key in self._references]
        self._waiting.clear()
        return rows
