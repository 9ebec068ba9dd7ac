"""Sampled runs for a terminal."""

from __future__ import annotations

from cabs_search.common.formats import as_p, between, number, points, table
from cabs_search.results.sampled import NOTE, Sampled

HEAD = ("", "runs", "mean", "95 % t-interval", "greedy", "to best baseline", "Welch p")


def sampled_text(sampled: Sampled) -> str:
    """Write sampled runs for a terminal."""
    cells = [
        [
            row.label,
            str(len(row.runs)),
            number(row.mean),
            between(row.interval),
            number(row.greedy),
            points(row.difference, typeset=False),
            "" if row.welch_p is None else as_p(row.welch_p),
        ]
        for row in sampled.rows
    ]
    title = f"{sampled.name}: {sampled.title}"
    return "\n".join([title, "", *table([HEAD, *cells]), "", NOTE])
