"""Looks at the leaderboard's rows while they are confirmed: some end before all items are scored.

Rows wait for each other at a look, so that what is decided depends on the record alone: a search
that was killed and goes on decides the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Confirmation
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.progress_file import Share
from cabs_search.spec.study import Spec
from cabs_search.stats.sequential import Decisions, decide, first_items, look_ends
from cabs_search.stats.simultaneous import REPLICATES, Floats, resample_weights
from cabs_search.tasks.items import Ints


class ConfirmLooks:
    """Decides at each look which rows go on, and keeps that in the record."""

    def __init__(
        self,
        spec: Spec,
        blocks: Sequence[Mapping[str, Ints]],
        outcomes: Outcomes,
        references: Collection[Recipe],
    ) -> None:
        """Plan the looks.

        Args:
            spec: what is searched.
            blocks: rows of the confirm items by task, of each block.
            outcomes: the record.
            references: base and experts.

        """
        self._spec, self._blocks, self._outcomes = spec, blocks, outcomes
        self._family = {recipe.key: recipe for recipe in references}
        self._candidates: set[str] = set()
        self._stays: set[str] = set()
        self._ended: set[str] = set()
        sizes = [[len(block[task]) for task in spec.tasks] for block in blocks]
        self._block_items = [sum(by_task) for by_task in sizes]
        self._items = np.cumsum(sizes, axis=0).tolist()
        """Items of each task in the first blocks."""
        is_mean = all(task.measure.is_mean for task in spec.tasks.values())
        stops = spec.search.confirm_stops and is_mean and spec.search.objective == "mean"
        of_task = outcomes.clusters("confirm")
        self._clusters = [of_task[task] for task in spec.tasks]
        self._ends = look_ends(self._items, self._clusters) if stops else [len(blocks)]
        self._done = 0
        self.are_over = False
        """True if no row will have more items scored than are due now."""

    @property
    def share(self) -> Share:
        """Items of all rows that are scored, of those that are scored at most."""
        spent = limit = 0
        for key, recipe in self._family.items():
            done = self._outcomes.done_blocks(recipe, "confirm")
            scored = sum(self._block_items[number] for number in done)
            spent += scored
            limit += scored if key in self._ended else sum(self._block_items)
        return Share("item", spent, limit)

    def start(self, candidates: Collection[Recipe], stays: Collection[Recipe]) -> None:
        """Take in what the search has found, and the rows of it that are seen to the end."""
        compared = {recipe.key: recipe for recipe in stays}
        found = compared | {recipe.key: recipe for recipe in candidates}
        self._stays, self._candidates = set(compared), set(found)
        self._family |= found
        self.are_over = len(self._ends) == 1
        if self.are_over:
            self._outcomes.conclude(None)

    def due(self, recipe: Recipe) -> int:
        """Return the number of blocks of a recipe that are to be scored now."""
        is_whole = recipe.key in self._stays or self._done == len(self._ends)
        return len(self._blocks) if is_whole else self._ends[self._done]

    def next_rows(self) -> list[Recipe]:
        """Look at the rows if all have come that far; return those that go on."""
        while not self.are_over:
            if not self._have_come():
                return []
            if rows := self._look():
                return rows
        return []

    def _going_on(self) -> list[Recipe]:
        return [recipe for key, recipe in self._family.items() if key not in self._ended]

    def _have_come(self) -> bool:
        """Tell whether all rows that go on are scored up to the next look."""
        seen = set(range(self._ends[self._done]))
        done = self._outcomes.done_blocks
        return all(seen <= done(recipe, "confirm") for recipe in self._going_on())

    def _look(self) -> list[Recipe]:
        """Decide at the next look; return the rows of which more items are to be scored."""
        going_on = self._going_on()
        self._done += 1
        self.are_over = self._done == len(self._ends)
        decisions = self._decide()
        ended = dict(zip(self._family, decisions.ended.tolist(), strict=True))
        tied = zip(self._family, decisions.tied, strict=True)
        self._ended = {key for key, look in ended.items() if look >= 0}
        self._outcomes.conclude(
            Confirmation(
                ended=frozenset(k for k, look in ended.items() if 0 <= look < len(self._ends) - 1),
                tied=frozenset(key for key, is_tied in tied if is_tied),
            )
        )
        return [recipe for recipe in going_on if recipe.key not in self._ended]

    def _decide(self) -> Decisions:
        """Compute the decisions at all looks so far from the record."""
        samples = [
            partial(resample_weights, clusters, REPLICATES, (self._spec.seed, place))
            for place, clusters in enumerate(self._clusters)
        ]
        looks = first_items(
            self._values(),
            samples,
            [self._items[end - 1] for end in self._ends[: self._done]],
            self._clusters,
        )
        is_candidate, stays = (
            np.array([key in chosen for key in self._family])
            for chosen in (self._candidates, self._stays)
        )
        return decide(looks, stays, is_candidate)

    def _values(self) -> list[Floats]:
        """Return the items' scores of each task, NaN where they are not recorded, [n, k]."""
        shape = [(count, len(self._family)) for count in self._items[-1]]
        values = [np.full(size, np.nan) for size in shape]
        for column, recipe in enumerate(self._family.values()):
            for number, by_task in self._outcomes.block_results(recipe, "confirm").items():
                for task_values, task in zip(values, self._spec.tasks, strict=True):
                    task_values[self._blocks[number][task], column] = by_task[task][0]
        return values
