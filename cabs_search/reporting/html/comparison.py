"""A comparison's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cabs_search.common.formats import between, number
from cabs_search.reporting.charts import comparison as comparison_charts
from cabs_search.reporting.charts import study as charts
from cabs_search.reporting.charts.study import distance
from cabs_search.reporting.html.layout import Cell, Figure, Page, Section, Table, TableRow
from cabs_search.reporting.html.parts import (
    FEWER,
    HEAD,
    INTERVALS,
    NOTHING,
    TRADE,
    as_reported_tables,
    board_row,
    facts_of,
    item_count,
    tests_table,
    unbroken,
)
from cabs_search.results.comparison import Comparison, ValueRow, comparison_verdict
from cabs_search.results.leaderboard import BASELINE

MANY_VALUES = f"Every value against every other is drawn of {charts.MOST_NAMES} values at the most."


def comparison_page(found: Comparison, folder: Path) -> Page:
    """A comparison's page."""
    axes = " and ".join(axis.partition("=")[0] for axis in found.over)
    made = (_values, _value_ties, _value_tasks)
    spent = Section(
        id="spent",
        title="What it took",
        texts=found.spent.text,
        tables=as_reported_tables(found.as_reported),
    )
    return Page(
        name=found.name,
        kind=f"compared over {axes}",
        verdict=found.headline,
        remarks=(comparison_verdict(found),),
        figures=_value_figures(found),
        sections=(
            *(section for section in (make(found) for make in made) if section is not None),
            spent,
        ),
        facts=facts_of(folder, *found.over),
    )


def _value_figures(found: Comparison) -> tuple[Cell, ...]:
    rows = [(line.label, line.row) for line in found.lines if line.row is not None]
    figures = []
    if rows:
        label, row = max(rows, key=lambda one: one[1].score)
        figures.append(
            (
                number(row.score),
                f"{label}, the highest on fresh items; 95 % {unbroken(between(row.simultaneous))}",
            )
        )
        if (contrast := row.against.get(BASELINE)) is not None:
            points, interval = distance(contrast)
            figures.append(
                (points, f"points to the best shared-λ Task Arithmetic; 95 % {unbroken(interval)}")
            )
    if found.tie_set is not None:
        tied = f"{len(found.tie_set.labels)} of {found.tie_set.of}"
        figures.append((tied, "cannot be told from the best of them"))
    each = item_count(found, "search")
    candidates = (
        found.spent.items["search"] // each
    )  # what two values have in common was scored once
    figures.append((f"{candidates:,}", f"candidates searched, each on {each:,} items"))
    return tuple(figures)


def _values(found: Comparison) -> Section:
    names, drawn = list(found.items["confirm"]), comparison_charts.compared(found)
    lines = [board_row(row, names) for row in found.alone]
    if found.reference is not None:
        lines.append(board_row(found.reference, names, charts.SHARED_TA))
    lines += [_value_line(line, names) for line in found.lines]
    head = ("", *HEAD, *names, "search", "to best shared TA", "p (Holm)")
    labelled = [replace(line.row, label=line.label) for line in found.lines if line.row is not None]
    tests = tests_table(labelled, BASELINE)
    says = "Each value's best candidate with its intervals"
    return Section(
        id="values",
        title="Value by value on fresh items",
        texts=(
            (
                "Each value had the same budget. Its row is the best of its candidates by their"
                f" search scores, scored on {item_count(found, 'confirm'):,} confirm items that no"
                " proposal has seen."
            ),
        ),
        figures=(
            *(() if drawn is None else (Figure(specs=(drawn,), says=says),)),
            *_crossed(found),
        ),
        notes=(INTERVALS, *found.notes),
        tables=(
            Table(title="Row by row", head=head, lines=tuple(lines), is_open=True),
            *(
                [replace(tests, title="Tests against the best shared-λ Task Arithmetic")]
                if tests
                else []
            ),
        ),
    )


def _crossed(found: Comparison) -> tuple[Figure, ...]:
    drawn = comparison_charts.crossed(found)
    if drawn is None or found.reference is None:
        return ()
    title = f"Points above the best shared-λ Task Arithmetic ({number(found.reference.score)})"
    return (Figure(specs=(drawn,), title=title, says="One axis down, the other across"),)


def _value_line(line: ValueRow, names: Sequence[str]) -> TableRow:
    if line.row is None:
        return TableRow(
            label=(line.label, f"not run: {line.failure}"), cells=(NOTHING,) * (len(names) + 5)
        )
    return board_row(line.row, names, line.label)


def _value_ties(found: Comparison) -> Section | None:
    drawn = comparison_charts.matrix(found)
    if found.tie_set is None:
        return None
    title, says = (
        "Points of the row above the column, paired; * told apart",
        "Every value against every other",
    )
    return Section(
        id="ties",
        title="What cannot be told apart",
        texts=(found.finding,),
        names=found.tie_set.labels,
        figures=() if drawn is None else (Figure(specs=(drawn,), title=title, says=says),),
        notes=(MANY_VALUES,) if drawn is None else (),
    )


def _value_tasks(found: Comparison) -> Section | None:
    drawn = comparison_charts.compared_gains(found)
    if drawn is None or found.reference is None:
        return None
    title = f"Points above the best shared-λ Task Arithmetic, {found.reference.text}"
    figures = (Figure(specs=(drawn,), title=title, says="Each value's gain or loss by task"),)
    return Section(
        id="tasks", title="Task by task", texts=(TRADE,), figures=figures, notes=(FEWER,)
    )
