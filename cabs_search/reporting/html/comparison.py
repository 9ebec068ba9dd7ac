"""Page of a comparison."""

from __future__ import annotations

from pathlib import Path

from cabs_search.common.formats import between, number
from cabs_search.reporting.charts import comparison as charts
from cabs_search.reporting.charts.search import MAX_NAMES
from cabs_search.reporting.html.layout import Cell, Figure, Page, Section
from cabs_search.reporting.html.parts import (
    FEWER,
    INTERVALS,
    SCORES,
    TRADE,
    as_reported_tables,
    facts_of,
    html_table,
    item_count,
    tests_tables,
    unbroken,
)
from cabs_search.reporting.tables import comparison_table, gain_texts
from cabs_search.results.comparison import Comparison
from cabs_search.results.rows import BASELINE

MANY_VALUES = f"Every value against every other is drawn of {MAX_NAMES} values at the most."


def comparison_page(comparison: Comparison, folder: Path) -> Page:
    """Return the page of a comparison."""
    axes = " and ".join(axis.partition("=")[0] for axis in comparison.over)
    makers = (_values, _value_ties, _value_tasks)
    spent = Section(
        id="spent",
        title="What it took",
        texts=comparison.spent.text,
        tables=as_reported_tables(comparison.as_reported),
    )
    return Page(
        name=comparison.name,
        kind=f"compared over {axes}",
        verdict=comparison.headline,
        remarks=(comparison.verdict,),
        figures=_value_figures(comparison),
        sections=(
            *(section for make in makers if (section := make(comparison)) is not None),
            spent,
        ),
        facts=facts_of(folder, *comparison.over),
    )


def _value_figures(comparison: Comparison) -> tuple[Cell, ...]:
    rows = [(line.label, line.row) for line in comparison.lines if line.row is not None]
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
            points, interval = gain_texts(contrast)
            figures.append(
                (points, f"points to the best shared-λ Task Arithmetic; 95 % {unbroken(interval)}")
            )
    if comparison.tie_set is not None:
        tied = f"{len(comparison.tie_set.labels)} of {comparison.tie_set.of}"
        figures.append((tied, "cannot be told from the best of them"))
    items = item_count(comparison, "search")
    # candidates that two values have in common were scored once
    candidates = comparison.spent.items["search"] // items
    figures.append((f"{candidates:,}", f"candidates searched, each on {items:,} items"))
    return tuple(figures)


def _values(comparison: Comparison) -> Section:
    drawn = charts.compared(comparison)
    labelled = [(line.label, line.row) for line in comparison.lines if line.row is not None]
    says = "Each value's best candidate with its intervals"
    return Section(
        id="values",
        title="Value by value on fresh items",
        texts=(
            (
                "Each value had the same budget. Its row is the best of its candidates by their"
                f" search scores, scored on {item_count(comparison, 'confirm'):,} confirm items"
                " that no proposal has seen."
            ),
        ),
        figures=(
            *(() if drawn is None else (Figure(specs=(drawn,), says=says),)),
            *_crossed(comparison),
        ),
        notes=(INTERVALS, *comparison.notes),
        tables=(
            html_table(comparison_table(comparison), SCORES, "Row by row", is_open=True),
            *tests_tables(labelled, {"best shared-λ Task Arithmetic": BASELINE}),
        ),
    )


def _crossed(comparison: Comparison) -> tuple[Figure, ...]:
    drawn = charts.crossed(comparison)
    if drawn is None or comparison.reference is None:
        return ()
    title = f"Points above the best shared-λ Task Arithmetic ({number(comparison.reference.score)})"
    return (Figure(specs=(drawn,), title=title, says="One axis down, the other across"),)


def _value_ties(comparison: Comparison) -> Section | None:
    drawn = charts.matrix(comparison)
    if comparison.tie_set is None:
        return None
    title, says = (
        "Points of the row above the column, paired; * told apart",
        "Every value against every other",
    )
    return Section(
        id="ties",
        title="What cannot be told apart",
        texts=(comparison.finding,),
        names=comparison.tie_set.labels,
        figures=() if drawn is None else (Figure(specs=(drawn,), title=title, says=says),),
        notes=(MANY_VALUES,) if drawn is None else (),
    )


def _value_tasks(comparison: Comparison) -> Section | None:
    drawn = charts.compared_gains(comparison)
    if drawn is None or comparison.reference is None:
        return None
    title = f"Points above the best shared-λ Task Arithmetic, {comparison.reference.text}"
    figures = (Figure(specs=(drawn,), title=title, says="Each value's gain or loss by task"),)
    return Section(
        id="tasks", title="Task by task", texts=(TRADE,), figures=figures, notes=(FEWER,)
    )
