"""What a study cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cabs_search.common.formats import duration
from cabs_search.results.scores import RecordScores


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a study took."""

    items: Mapping[str, int]
    """Scored, by split."""
    seconds: Mapping[str, float]
    """By what they were spent on, of all workers together; ``wall`` is the clock's."""
    repeated: int
    """Proposals that were known and not scored again."""
    pruned: int
    """Sets of pruned vectors; all other candidates took one of these from the cache."""
    text: tuple[str, ...]


def cost_of(scores: RecordScores) -> Cost:
    """What was spent, from the record."""
    items = {"search": sum(s.items for s in scores.searched.values())}
    items |= {"confirm": sum(s.items for s in scores.confirmed.values())}
    known = dict(scores.spent)
    repeated = int(known.pop("repeated", 0))
    methods = {s.recipe.method for s in scores.searched.values()}
    text = [f"{items['search']:,} items scored in the search, {items['confirm']:,} to confirm."]
    if "wall" in known:
        workers = ", ".join(f"{what} {duration(known[what])}" for what in known if what != "wall")
        text.append(f"{duration(known['wall'])} in all; of all workers together: {workers}.")
    if len(methods) < len(scores.searched):
        text.append(
            f"{len(methods)} sets of pruned vectors served {len(scores.searched)} candidates: all"
            " but the first of each found theirs in the cache."
        )
    if repeated:
        per = sum(len(of) for of in scores.labels["search"].values())
        text.append(f"{repeated} proposals were known: {repeated * per:,} items not scored again.")
    return Cost(
        items=items, seconds=known, repeated=repeated, pruned=len(methods), text=tuple(text)
    )
