"""Charts of a comparison."""

from __future__ import annotations

from cabs_search.common.formats import as_p, points
from cabs_search.reporting.charts.marks import heat, named
from cabs_search.reporting.charts.study import (
    MOST_NAMES,
    OWN,
    ROLES,
    SCORES_HOVER,
    SHARED_TA,
    dots,
    gains,
    row_values,
)
from cabs_search.reporting.charts.theme import Spec
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import SIGNIFICANT


def compared(found: Comparison) -> Spec | None:
    """Each value's best candidate on the confirm split with its intervals, best first; None without
    one.
    """
    values = [row_values(line.row, line.label) for line in found.lines if line.row is not None]
    if not values:
        return None
    if found.reference is not None:
        values.append(row_values(found.reference, SHARED_TA) | {"role": ROLES["baseline"][0]})
    values += [row_values(row) for row in found.alone]
    return dots(sorted(values, key=lambda value: -value["score"]))


def compared_gains(found: Comparison) -> Spec | None:
    """Each value's metric per task in points above the best shared-λ Task Arithmetic's; None
    without these.
    """
    rows = [(line.label, line.row) for line in found.lines if line.row is not None]
    if found.reference is None or not rows:
        return None
    rows.sort(key=lambda row: -row[1].score)
    return gains(rows + [(OWN, row) for row in found.alone if row.role == "ideal"], found.reference)


def crossed(found: Comparison) -> Spec | None:
    """Two axes, one down and one across: points above the best shared-λ Task Arithmetic; None of
    one axis.
    """
    rows = {tuple(line.label.split(" ")): line.row for line in found.lines if line.row is not None}
    rows = {key: row for key, row in rows.items() if len(key) == 2}
    if len(found.over) < 2 or found.reference is None or not rows:
        return None
    values = []
    for (label, column), row in rows.items():
        gain = row.score - found.reference.score
        shown = {"label": label, "column": column, "gain": 100 * gain, "points": points(gain)}
        values.append(row_values(row) | shown)
    down, across = (list(dict.fromkeys(key[place] for key in rows)) for place in (0, 1))
    return heat(
        values,
        x=named("column", across, orient="top", labelAngle=0, labelLimit=120),
        y=named("label", down),
        hover=(("label", "row"), ("column", "column"), *SCORES_HOVER[1:]),
        noise=100 * max((row.simultaneous[1] - row.simultaneous[0]) / 2 for row in rows.values()),
    )


def matrix(found: Comparison) -> Spec | None:
    """Every value against every other, paired: points of the row above the column; None of one, or
    too many.
    """
    if found.matrix is None or len(found.matrix.labels) > MOST_NAMES:
        return None
    of = found.matrix
    labels = [f"{place} · {label}" for place, label in enumerate(of.labels, 1)]
    values = [
        {
            "label": down,
            "other": across,
            "column": str(j + 1),
            "gain": 100 * of.estimate[i][j],
            "points": points(of.estimate[i][j]) + ("*" if of.p_holm[i][j] < SIGNIFICANT else ""),
            "interval": f"[{points(of.low[i][j])}, {points(of.high[i][j])}]",
            "p": as_p(of.p_holm[i][j]),
        }
        for i, down in enumerate(labels)
        for j, across in enumerate(labels)
        if i != j
    ]
    hover = (
        ("label", "row"),
        ("other", "column"),
        ("points", "points above it"),
        ("interval", "95 %, all pairs"),
    )
    return heat(
        values,
        x=named(
            "column",
            [str(place) for place in range(1, len(labels) + 1)],
            orient="top",
            labelAngle=0,
        ),
        y=named("label", labels),
        hover=(*hover, ("p", "p (Holm)")),
        noise=100 * max(abs(end) for ends in (*of.low, *of.high) for end in ends),
    )
