"""Sampled runs for a terminal."""

from __future__ import annotations

from cabs_search.common.formats import as_p, between, number, points, table
from cabs_search.results.sampled import Sampled

HEAD = ("", "mean", "95 % t-interval", "greedy", "to best baseline", "Welch p")
NOTE = (
    "Runs differ by their seeds alone: intervals and p say nothing of other items, as the"
    " leaderboard's paired tests do."
)


def sampled_text(sampled: Sampled) -> str:
    """Write sampled runs for a terminal."""
    title = (
        f"{sampled.name}: {len(sampled.rows[0].runs)} runs of each at temperature"
        f" {sampled.temperature:g}, on the confirm items of {', '.join(sampled.tasks)}"
    )
    cells = [
        [
            row.label,
            number(row.mean),
            between(row.interval),
            number(row.greedy),
            points(row.difference, typeset=False),
            "" if row.welch_p is None else as_p(row.welch_p),
        ]
        for row in sampled.rows
    ]
    return "\n".join([title, "", *table([HEAD, *cells]), "", NOTE])
