"""Tie set: the candidates that cannot be told from the best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cabs_search.results.panel import Panel
from cabs_search.stats.simultaneous import items_needed


@dataclass(frozen=True, kw_only=True)
class TieSet:
    """Candidates that cannot be told from the best."""

    labels: tuple[str, ...]
    """Members, the best first."""
    of: int
    """Candidates compared."""
    items: int
    """Items they were compared on."""
    gap: float
    items_needed: int | None
    """Items that would show such a gap between the best and another member; None if there is no
    other.
    """
    text: str


GAP = 0.005
"""Difference for which a tie set says how many items would show it: half a point."""


def tie_set(
    panel: Panel,
    names: Sequence[str],
    what: str = "candidates",
    known: Collection[str] | None = None,
) -> TieSet | None:
    """Compute the tie set of a panel's candidates; None without candidates.

    Args:
        panel: holds the candidates.
        names: their names.
        what: what they are, for the text.
        known: those that are tied, where that was decided while they were confirmed.

    """
    if not names:
        return None
    if known is None:
        tied = panel.tied(names)
    else:
        tied = panel.best_first([name for name in names if name in known])
    if not tied:  # while rows are confirmed, those that are tied may not be whole yet
        return None
    best, others = tied[0], tied[1:]
    needed = None
    if others:
        error = float(np.median([panel.error(best, other) for other in others]))
        needed = _rounded(items_needed(error, panel.items, GAP))
    return TieSet(
        labels=tuple(tied),
        of=len(names),
        items=panel.items,
        gap=GAP,
        items_needed=needed,
        text=_in_words(len(tied), len(names), panel.items, needed, what),
    )


def _in_words(tied: int, of: int, items: int, needed: int | None, what: str) -> str:
    if of == 1:
        return f"One of the {what} was confirmed: there is nothing to tell it from."
    if needed is None:
        return f"With {items:,} items only one of {of} {what} can be the best (95 %)."
    text = f"{tied} of {of} {what} cannot be told apart with {items:,} items"
    gap = f"a gap of {100 * GAP:g} points"
    if needed <= items:
        return f"{text}, with which {gap} between two of them would be seen."
    return f"{text}; separating {gap} would need about {needed:,}."


def _rounded(count: int) -> int:
    """Round an estimate up to two digits."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // unit) * unit
