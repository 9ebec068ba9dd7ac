"""Comparison for a terminal."""

from __future__ import annotations

from cabs_search.common.formats import number, points, table
from cabs_search.reporting.tables import COMPARISON, POINTS, as_text, comparison_table
from cabs_search.results.comparison import Comparison
from cabs_search.results.matrix import Matrix
from cabs_search.results.rows import SIGNIFICANT

MAX_PAIRED = 20
"""Most values of which a terminal shows every pair."""


def comparison_text(comparison: Comparison) -> str:
    """Write a comparison for a terminal: each value's best candidate, in points as papers do."""
    count = {split: sum(by_task.values()) for split, by_task in comparison.items.items()}
    title = (
        f"{comparison.name} over {' and '.join(comparison.over)}: each row is the best of its"
        f" candidates by {count['search']} search items, scored on {count['confirm']} confirm items"
        " that no proposal has seen; in points, paired"
    )
    rows = as_text(comparison_table(comparison), COMPARISON, POINTS)
    pivot = [] if len(comparison.over) < 2 else ["", *_pivot(comparison)]
    pairs = comparison.matrix
    pair_lines = ["", *_pairs(pairs)] if pairs and len(pairs.labels) <= MAX_PAIRED else []
    sentences = [*comparison.notes, comparison.finding, comparison.verdict]
    ends = [sentence for sentence in sentences if sentence]
    return "\n".join([title, "", *rows, *pivot, *pair_lines, "", *ends, *comparison.spent.text])


def _pivot(comparison: Comparison) -> list[str]:
    """Write averages with one axis down and the other across."""
    scores = {
        line.values: "-" if line.row is None else number(100 * line.row.score, 2)
        for line in comparison.lines
        if len(line.values) == 2
    }
    down, across = (list(dict.fromkeys(key[axis] for key in scores)) for axis in (0, 1))
    rows = [[name, *(scores.get((name, other), "-") for other in across)] for name in down]
    return table([["average", *across], *rows])


def _pairs(pairs: Matrix) -> list[str]:
    """Write every pair of values: the row's score minus the column's, marked if told apart."""
    places = range(len(pairs.labels))
    rows = [["row - column, points", *(str(place + 1) for place in places)]]
    for i, label in enumerate(pairs.labels):
        marks = ["*" if p < SIGNIFICANT else "" for p in pairs.p_holm[i]]
        cells = [points(pairs.estimate[i][j], 2, typeset=False) + marks[j] for j in places]
        cells[i] = "."
        rows.append([f"{i + 1} {label}", *cells])
    legend = "*: told apart (paired permutation test, Holm's correction for all pairs)"
    return [*table(rows), legend]
