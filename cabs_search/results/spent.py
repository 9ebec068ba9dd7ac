"""Cost of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cabs_search.common.formats import duration
from cabs_search.results.scores import RecordScores


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Items, seconds and pruned vectors that a study took."""

    items: Mapping[str, int]
    """Items scored, by split; by an ensemble once for each of its models."""
    seconds: Mapping[str, float]
    """Seconds of all workers together by what they did; ``wall``: by the clock."""
    repeated: int
    """Proposals already scored, hence not scored again."""
    pruned: int
    """Sets of pruned vectors; all other candidates took one of these from the cache."""
    text: tuple[str, ...]


def cost_of(scores: RecordScores, searches: int = 1) -> Cost:
    """Compute the cost of a study, or of so many searches of a comparison, from its record."""
    stopped, stopped_items = scores.unfinished
    searched = sum(s.items for s in scores.searched.values()) + scores.reference_items
    items = {"search": searched + stopped_items}
    confirm = [s.items for s in scores.confirmed.values()]
    forwards = [s.items * s.recipe.forwards for s in scores.confirmed.values()]
    items |= {"confirm": sum(forwards)}
    seconds = dict(scores.spent)
    repeated = int(seconds.pop("repeated", 0))
    converged = int(seconds.pop("converged", 0))
    if refined := int(seconds.pop("refine items", 0)):
        items["refine"] = refined
    methods = {s.recipe.method for s in scores.searched.values()}
    text = [f"{items['search']:,} items scored in the search, {items['confirm']:,} to confirm."]
    if refined:
        text[0] = text[0].removesuffix(".") + f", {refined:,} to refine (a backward pass counts 2)."
    whole = sum(len(labels) for labels in scores.labels["confirm"].values())
    if saved := sum(whole - count for count in confirm):
        early = sum(count < whole for count in confirm)
        text.append(
            f"{early} of {len(confirm)} rows ended early, which saved {saved:,} items to confirm."
        )
    if stopped:
        text.append(
            f"{stopped} candidates were not scored to the end, which took {stopped_items:,} of the"
            " search items."
        )
    if converged:
        which = "The search" if searches == 1 else f"{converged} of {searches} searches"
        text.append(
            f"{which} ended early: what could still be gained was less than the noise of a score."
        )
    if scores.reference_items:
        text.append(
            f"{scores.reference_items:,} of the search items were scored for what the objective"
            " compares candidates with."
        )
    if "wall" in seconds:
        work = ", ".join(f"{k} {duration(v)}" for k, v in seconds.items() if k != "wall")
        text.append(f"{duration(seconds['wall'])} in all; of all workers together: {work}.")
    if len(methods) < len(scores.searched):
        text.append(
            f"{len(methods)} sets of pruned vectors served {len(scores.searched)} candidates: all"
            " but the first of each found theirs in the cache."
        )
    if repeated:
        saved = repeated * sum(len(labels) for labels in scores.labels["search"].values())
        text.append(f"{repeated} proposals were known: {saved:,} items not scored again.")
    return Cost(
        items=items, seconds=seconds, repeated=repeated, pruned=len(methods), text=tuple(text)
    )
