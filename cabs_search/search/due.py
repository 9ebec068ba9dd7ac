"""Blocks of a recipe that are to be scored now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.jobs import Job
from cabs_search.tasks.items import Ints, SplitName


def _next_look(blocks: int) -> int:
    """Return the number of blocks at which a candidate is looked at next: the next power of two."""
    return 1 << blocks.bit_length()


class DueBlocks:
    """Tells which blocks a recipe lacks, and when its candidate is looked at."""

    def __init__(
        self,
        blocks: Mapping[SplitName, Sequence[Mapping[str, Ints]]],
        outcomes: Outcomes,
        to_confirm: Callable[[Recipe], int],
        *,
        has_looks: bool,
        rotates: bool,
    ) -> None:
        """Prepare.

        Args:
            blocks: rows by task of each block, by split.
            outcomes: the record.
            to_confirm: returns the number of confirm blocks that are due of a recipe.
            has_looks: whether candidates may be stopped.
            rotates: whether candidates begin at different blocks, so that between them all items
                are learned.

        """
        self.blocks = blocks
        self.items = [sum(map(len, rows.values())) for rows in blocks["search"]]
        """Search items of each block."""
        self.whole: set[str] = set()
        """Keys of recipes that are scored in full: what was recommended or refined."""
        self.compared: set[str] = set()
        """Keys of recipes that are never stopped: others are compared with them."""
        self.has_looks = has_looks
        self._counts = {split: len(of_split) for split, of_split in blocks.items()}
        self._outcomes, self._to_confirm = outcomes, to_confirm
        self._rotates = rotates

    def job(self, recipe: Recipe, split: SplitName) -> Job:
        """Return a job of the blocks that are due and not recorded."""
        recorded = self._outcomes.done_blocks(recipe, split)
        count = self._counts[split]
        order = list(range(count))
        if split == "search" and self.is_raced(recipe):
            count = min(count, _next_look(len(recorded)))
            if self._rotates:
                start = int(recipe.key, 16) % len(order)
                order = order[start:] + order[:start]
        if split == "confirm":
            count = self._to_confirm(recipe)
        todo = tuple(b for b in order[:count] if b not in recorded)
        return Job(recipe=recipe, split=split, todo=todo)

    def is_at_look(self, recipe: Recipe) -> bool:
        """Tell whether as many blocks are recorded of a candidate as at a look."""
        blocks = len(self._outcomes.done_blocks(recipe, "search"))
        return self.is_raced(recipe) and blocks > 0 and blocks & (blocks - 1) == 0

    def is_raced(self, recipe: Recipe) -> bool:
        """Tell whether a candidate may be stopped."""
        is_kept = recipe.key in self.whole or recipe.key in self.compared
        return self.has_looks and not is_kept

    @property
    def stops_at(self) -> int | None:
        """Items after which every candidate in a race is stopped; None: it cannot be told before.

        The surface's own rule stops each at its first look; blocks begin at another one for each.
        """
        return max(self.items) if self._rotates else None

    def most(self, recipe: Recipe) -> int:
        """Return the most search items that a candidate can take."""
        if self.stops_at is not None and self.is_raced(recipe):
            return self.stops_at
        return sum(self.items)

    def recorded(self, recipe: Recipe) -> int:
        """Count the search items that are recorded of a recipe."""
        return sum(self.items[block] for block in self._outcomes.done_blocks(recipe, "search"))
