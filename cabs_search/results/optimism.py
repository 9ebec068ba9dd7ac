"""By how much the search split flatters what it chose."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from cabs_search.results.panel import Panel
from cabs_search.results.scores import RecordScores
from cabs_search.spec.study import Spec

SEARCH_REPLICATES = 2000
"""Bootstrap samples of the search items, for the optimism."""


@dataclass(frozen=True, kw_only=True)
class Optimism:
    """By how much the search split flatters the candidate that was chosen on it."""

    search: float
    confirm: float
    estimate: float
    """search - confirm; a part of it is that the splits' items differ."""
    interval: tuple[float, float]
    """95 %."""
    expected: float | None
    """What choosing the best of so many by so few items adds, by bootstrap; None where that would
    take minutes.
    """
    text: str


def optimism_of(spec: Spec, scores: RecordScores, panel: Panel, key: str | None) -> Optimism | None:
    """Of the candidate that was chosen; None where none is confirmed yet."""
    if key is None:
        return None
    before, after = scores.searched[key].score, scores.confirmed[key].score
    few = is_quick_of(spec)
    pool = dict(scores.searched) if few else {key: scores.searched[key]}
    on_search = scores.panel(spec, pool, "search", replicates=SEARCH_REPLICATES)
    error = math.hypot(on_search.standard_error(key), panel.standard_error(key))
    margin = float(stats.norm.ppf(0.975)) * error
    expected = on_search.selection_bias() if few else None
    low, high = before - after - margin, before - after + margin
    text = (
        f"What the search items chose scored {before:.4f} on them and {after:.4f} on fresh ones: "
        f"{100 * (before - after):+z.1f} points of optimism [{100 * low:+z.1f}, {100 * high:+z.1f}]"
    )
    if expected is not None:
        text += (
            f"; choosing the best of {len(pool)} by {on_search.items:,} items is expected to add"
            " about "
        )
        text += f"{100 * expected:.1f}"
    return Optimism(
        search=before,
        confirm=after,
        estimate=before - after,
        interval=(low, high),
        expected=expected,
        text=f"{text}.",
    )


def is_quick_of(spec: Spec) -> bool:
    """Whether all metrics can be resampled for every candidate of a search."""
    return all(task.measure.is_quick for task in spec.tasks.values())
