"""Rows of the leaderboard that are scored on the confirm split."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Expected, Scored
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.progress_file import Share
from cabs_search.search.candidates import Candidates, best_of, ranked
from cabs_search.search.confirm_looks import ConfirmLooks
from cabs_search.spec.study import Spec


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
    """Choose what the verdict is about: the best baseline, and what is recommended, else the best
    found.
    """
    shared = candidates.best_shared(scored).values()
    rows = [ranked(shared)[0].recipe] if shared else []
    if recommended is None and scored:
        recommended = ranked(scored.values())[0].recipe
    return [*rows, *([recommended] if recommended else [])]


class ConfirmStage:
    """Rows to confirm: base and experts at any time, candidates once the search is over."""

    def __init__(
        self,
        spec: Spec,
        candidates: Candidates,
        outcomes: Outcomes,
        looks: ConfirmLooks,
        references: Iterable[Recipe],
        study: str,
    ) -> None:
        """Begin with base and experts.

        Args:
            spec: what is searched.
            candidates: its candidates.
            outcomes: the record.
            looks: decides which rows go on.
            references: base and experts, if this study confirms them.
            study: the study's id.

        """
        self._top, self._candidates, self._outcomes = spec.search.confirm, candidates, outcomes
        self._looks, self._study = looks, study
        self._references: set[str] = set()
        self._waiting: deque[Recipe] = deque()
        self.has_candidates = False
        """True once candidates were chosen; then no more rows will come."""
        self.chosen: Scored | None = None
        """The recommended candidate, without its outcomes."""
        self.add_references(references)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def share(self) -> Share:
        """Items of all rows that are scored, of those that are scored at most."""
        return self._looks.share

    @property
    def are_over(self) -> bool:
        """True if no row waits or will come."""
        return self._looks.are_over and not self._waiting

    def add_references(self, recipes: Iterable[Recipe]) -> None:
        """Add base and experts, which do not depend on the search."""
        for recipe in recipes:
            self._references.add(recipe.key)
            self._waiting.append(recipe)

    def choose(
        self,
        searched: Mapping[str, Scored],
        recommended: Expected | None,
        refined: Sequence[Scored | None],
    ) -> None:
        """Add what the search has found, and first what it recommends.

        Args:
            searched: the search's candidates that have a score, by key.
            recommended: the best of them by its prediction, if the sampler predicts.
            refined: what refining has made of one of them, coarse to fine; None where it failed.

        """
        best = recommended.recipe if recommended else None
        if recommended is not None:
            self.chosen = searched.get(recommended.recipe.key)
            self._outcomes.recommend(recommended, self._study)
        if refined and refined[-1]:
            self.chosen = refined[-1]
        levels = [level.recipe for level in refined if level]
        rows = [*levels, *rows_to_confirm(self._candidates, searched, self._top)]
        rows = rows if best is None else [best, *rows]
        final = refined[-1].recipe if refined and refined[-1] else best
        compared = rows_to_compare(self._candidates, searched, final)
        self._waiting.extend({recipe.key: recipe for recipe in rows}.values())
        self.has_candidates = True
        self._looks.start(rows, compared)

    def next_row(self) -> Recipe | None:
        """Return the next row; None if there is none, or others have to come as far first."""
        if self.has_candidates and not self._waiting:
            self._waiting.extend(self._looks.next_rows())
        return self._waiting.popleft() if self._waiting else None

    def is_candidate(self, recipe: Recipe) -> bool:
        """Tell whether a row is one of the search's, and not base, expert or ensemble."""
        return self.has_candidates and recipe.key not in self._references

    def put_back(self, recipe: Recipe) -> None:
        """Keep a recipe for later."""
        self._waiting.append(recipe)

    def release(self, orphaned: Iterable[Recipe]) -> list[Recipe]:
        """Drop all rows; return base and experts of them and of ``orphaned``."""
        rows = [r for r in (*self._waiting, *orphaned) if r.key in self._references]
        self._waiting.clear()
        return rows
