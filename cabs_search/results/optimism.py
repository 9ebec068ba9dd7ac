"""Optimism: how much the search split flatters what was chosen on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

from cabs_search.common.formats import number, points, points_between
from cabs_search.results.panel import Panel
from cabs_search.results.scores import RecordScores
from cabs_search.spec.task import Task

SEARCH_REPLICATES = 2000
"""Bootstrap samples of the search items."""


@dataclass(frozen=True, kw_only=True)
class Optimism:
    """Search score against confirm score of the candidate with the best search score."""

    search: float
    confirm: float
    estimate: float
    """search - confirm; a part of it is that the splits' items differ."""
    interval: tuple[float, float]
    """95 % interval of the estimate."""
    expected: float | None
    """Part that comes from choosing the best of so many by so few items, by bootstrap; None if that
    would take minutes, or it was not chosen by its score.
    """
    text: str


def optimism_of(
    tasks: Mapping[str, Task], seed: int, scores: RecordScores, panel: Panel, key: str
) -> Optimism:
    """Compute the optimism of the chosen candidate.

    Args:
        tasks, seed: the study's.
        scores: its record.
        panel: candidates on the confirm split.
        key: the chosen candidate, which is confirmed.

    """
    before, (after, _) = scores.searched[key].score, panel.row_scores(key)
    # a candidate that was not chosen by its score is not the best of many scores
    is_best = before == max(s.score for s in scores.searched.values())
    can_resample_all = is_best and all(task.measure.is_quick for task in tasks.values())
    pool = scores.searched if can_resample_all else {key: scores.searched[key]}
    on_search = scores.panel(tasks, seed, pool, "search", SEARCH_REPLICATES)
    error = math.hypot(on_search.standard_error(key), panel.standard_error(key))
    margin = float(stats.norm.ppf(0.975)) * error
    expected = on_search.selection_bias() if can_resample_all else None
    interval = (before - after - margin, before - after + margin)
    text = (
        f"What the search items chose scored {number(before)} on them and {number(after)} on fresh"
        f" ones: {points(before - after, typeset=False)} points of optimism"
        f" {points_between(interval, typeset=False)}"
    )
    if expected is not None:
        text += (
            f"; choosing the best of {len(pool)} by {on_search.items:,} items is expected to add"
            f" about {100 * expected:.1f}"
        )
    return Optimism(
        search=before,
        confirm=after,
        estimate=before - after,
        interval=interval,
        expected=expected,
        text=f"{text}.",
    )
