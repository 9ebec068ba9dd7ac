"""A comparison for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from cabs_search.common.formats import as_p, table
from cabs_search.results.comparison import Comparison, comparison_verdict
from cabs_search.results.leaderboard import SIGNIFICANT, Row
from cabs_search.results.panel import Contrast

WIDEST = 20
"""Values of which a terminal shows every pair."""


def comparison_text(found: Comparison) -> str:
    """The comparison for a terminal: as the papers print it, with each value's best candidate."""
    tasks = list(found.items["confirm"])
    head = [
        "",
        *tasks,
        "average",
        "95 % interval",
        "tied",
        "to best shared TA",
        "p",
        "search",
        "best recipe",
    ]
    lines = [head, *(_cells(row.label, row, tasks) for row in found.alone)]
    if found.reference is not None:
        lines.append(_cells("best shared TA", found.reference, tasks))
    for line in found.lines:
        if line.row is None:
            lines.append([line.label, *("" for _ in head[2:]), f"not run: {line.failure}"])
        else:
            lines.append(_cells(line.label, line.row, tasks, line.against))
    count = {split: sum(by_task.values()) for split, by_task in found.items.items()}
    title = (
        f"{found.name} over {' and '.join(found.over)}: each row is the best of its candidates by"
        f" {count['search']} search items, scored on {count['confirm']} confirm items that no"
        " proposal has seen; in points, paired"
    )
    pivot = [] if len(found.over) < 2 else ["", *_pivot(found)]
    pairs = ["", *_pairs(found)] if found.matrix and len(found.matrix.labels) <= WIDEST else []
    ends = [note for note in (*found.notes, found.finding, comparison_verdict(found)) if note]
    return "\n".join([title, "", *table(lines), *pivot, *pairs, "", *ends, *found.spent.text])


def _pairs(found: Comparison) -> list[str]:
    """Every pair of values: the row's score minus the column's, marked where they can be told
    apart.
    """
    assert found.matrix is not None
    of = found.matrix
    rows = [["row - column, points", *(str(place) for place in range(1, len(of.labels) + 1))]]
    for place, label in enumerate(of.labels):
        cells = [
            (
                "."
                if place == other
                else f"{100 * of.estimate[place][other]:+z.2f}{'*' if is_told else ''}"
            )
            for other, is_told in enumerate(p < SIGNIFICANT for p in of.p_holm[place])
        ]
        rows.append([f"{place + 1} {label}", *cells])
    return [
        *table(rows),
        "*: told apart (paired permutation test, Holm's correction for all pairs)",
    ]


def _cells(
    label: str, row: Row, tasks: Sequence[str], against: Contrast | None = None
) -> list[str]:
    distance = p_value = ""
    if against is not None:
        low, high = (100 * value for value in against.interval)
        distance, p_value = (
            f"{100 * against.estimate:+z.2f} [{low:+z.1f}, {high:+z.1f}]",
            as_p(against.p_holm),
        )
    return [
        label,
        *(f"{100 * row.tasks[task]:.2f}" for task in tasks),
        f"{100 * row.score:.2f}",
        f"[{100 * row.simultaneous[0]:.1f}, {100 * row.simultaneous[1]:.1f}]",
        "*" if row.tied else "",
        distance,
        p_value,
        "" if row.search_score is None else f"{100 * row.search_score:.2f}",
        row.text,
    ]


def _pivot(found: Comparison) -> list[str]:
    """Averages with one axis down and the other across."""
    cells = {
        tuple(line.label.split(" ")): line
        for line in found.lines
        if len(line.label.split(" ")) == 2
    }
    down, across = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    rows = [["average", *across]]
    for name in down:
        of_row = [cells.get((name, other)) for other in across]
        rows.append(
            [
                name,
                *(
                    f"{100 * c.row.score:.2f}" if c is not None and c.row is not None else "-"
                    for c in of_row
                ),
            ]
        )
    return table(rows)
