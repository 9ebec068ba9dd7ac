"""Charts of a comparison."""

from __future__ import annotations

from cabs_search.common.formats import as_p, points, points_between
from cabs_search.reporting.charts.marks import heat, named
from cabs_search.reporting.charts.rows import ROLES, ROW_HOVER, dots, row_values
from cabs_search.reporting.charts.search import MAX_NAMES
from cabs_search.reporting.charts.tasks import OWN_EXPERT, gains
from cabs_search.reporting.charts.theme import Spec
from cabs_search.reporting.tables import SHARED_TA
from cabs_search.results.comparison import Comparison
from cabs_search.results.rows import SIGNIFICANT


def compared(comparison: Comparison) -> Spec | None:
    """Draw each value's confirmed score with its intervals, best first; None without one."""
    values = [row_values(line.row, line.label) for line in comparison.lines if line.row is not None]
    if not values:
        return None
    if comparison.reference is not None:
        reference = row_values(comparison.reference, SHARED_TA)
        values.append(reference | {"role": ROLES["baseline"][0]})
    values += [row_values(row) for row in comparison.alone]
    return dots(sorted(values, key=lambda value: -value["score"]))


def compared_gains(comparison: Comparison) -> Spec | None:
    """Draw each value's gain over the best shared-λ Task Arithmetic by task; None without both."""
    rows = [(line.label, line.row) for line in comparison.lines if line.row is not None]
    if comparison.reference is None or not rows:
        return None
    rows.sort(key=lambda row: -row[1].score)
    ideal = [(OWN_EXPERT, row) for row in comparison.alone if row.role == "ideal"]
    return gains(rows + ideal, comparison.reference)


def crossed(comparison: Comparison) -> Spec | None:
    """Draw gains over the best shared-λ Task Arithmetic with one axis down and one across.

    None unless there are two axes.
    """
    rows = {
        line.values: line.row
        for line in comparison.lines
        if line.row is not None and len(line.values) == 2
    }
    if comparison.reference is None or not rows:
        return None
    values = []
    for (down, across), row in rows.items():
        gain = row.score - comparison.reference.score
        shown = {"label": down, "column": across, "gain": 100 * gain, "points": points(gain)}
        values.append(row_values(row) | shown)
    downs, acrosses = (list(dict.fromkeys(key[axis] for key in rows)) for axis in (0, 1))
    return heat(
        values,
        x=named("column", acrosses, orient="top", labelAngle=0, labelLimit=120),
        y=named("label", downs),
        hover=(("label", "row"), ("column", "column"), *ROW_HOVER[1:]),
        noise=100 * max((row.simultaneous[1] - row.simultaneous[0]) / 2 for row in rows.values()),
    )


def matrix(comparison: Comparison) -> Spec | None:
    """Draw every value against every other, paired; None for one value, or too many."""
    pairs = comparison.matrix
    if pairs is None or len(pairs.labels) > MAX_NAMES:
        return None
    labels = [f"{place} · {label}" for place, label in enumerate(pairs.labels, 1)]
    values = []
    for i, down in enumerate(labels):
        for j, across in enumerate(labels):
            if i == j:
                continue
            mark = "*" if pairs.p_holm[i][j] < SIGNIFICANT else ""
            values.append(
                {
                    "label": down,
                    "other": across,
                    "column": str(j + 1),
                    "gain": 100 * pairs.estimate[i][j],
                    "points": points(pairs.estimate[i][j]) + mark,
                    "interval": points_between((pairs.low[i][j], pairs.high[i][j])),
                    "p": as_p(pairs.p_holm[i][j]),
                }
            )
    columns = [str(place) for place in range(1, len(labels) + 1)]
    return heat(
        values,
        x=named("column", columns, orient="top", labelAngle=0),
        y=named("label", labels),
        hover=(
            ("label", "row"),
            ("other", "column"),
            ("points", "points above it"),
            ("interval", "95 %, all pairs"),
            ("p", "p (Holm)"),
        ),
        noise=100 * max(abs(end) for ends in (*pairs.low, *pairs.high) for end in ends),
    )
