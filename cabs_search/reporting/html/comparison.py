"""Page of a comparison."""

from __future__ import annotations

from pathlib import Path

from cabs_search.common.formats import number
from cabs_search.reporting.charts import comparison as charts
from cabs_search.reporting.charts.search import MAX_NAMES
from cabs_search.reporting.html.layout import Cell, Page, Section, figures
from cabs_search.reporting.html.parts import (
    FEWER,
    INTERVALS,
    SCORES,
    TRADE,
    as_reported_tables,
    facts_of,
    html_table,
    item_count,
    row_numbers,
    tests_tables,
    tied_number,
)
from cabs_search.reporting.tables import comparison_table
from cabs_search.results.comparison import Comparison
from cabs_search.results.rows import BASELINE, Row

REFERENCE_NAME = "best shared-λ Task Arithmetic"
MANY_VALUES = f"Every value against every other is drawn of {MAX_NAMES} values at the most."


def comparison_page(comparison: Comparison, folder: Path) -> Page:
    """Return the page of a comparison."""
    axes = " and ".join(axis.partition("=")[0] for axis in comparison.over)
    makers = (_values, _ties, _tasks)
    return Page(
        name=comparison.name,
        kind=f"compared over {axes}",
        verdict=comparison.headline,
        remarks=(comparison.verdict,),
        figures=_numbers(comparison),
        sections=(
            *(section for make in makers if (section := make(comparison)) is not None),
            Section(
                id="spent",
                title="What it took",
                texts=comparison.spent.text,
                tables=as_reported_tables(comparison.as_reported),
            ),
        ),
        facts=facts_of(folder, *comparison.over),
    )


def _labelled(comparison: Comparison) -> list[tuple[str, Row]]:
    return [(line.label, line.row) for line in comparison.lines if line.row is not None]


def _numbers(comparison: Comparison) -> tuple[Cell, ...]:
    label, row = max(_labelled(comparison), key=lambda line: line[1].score, default=("", None))
    items = item_count(comparison, "search")
    # candidates that two values have in common were scored once
    candidates = comparison.spent.items["search"] // items
    return (
        *row_numbers(row, f"{label}, the highest on fresh items", REFERENCE_NAME),
        *tied_number(comparison.tie_set),
        (f"{candidates:,}", f"candidates searched, each on {items:,} items"),
    )


def _values(comparison: Comparison) -> Section:
    text = (
        "Each value had the same budget. Its row is the best of its candidates by their search"
        f" scores, scored on {item_count(comparison, 'confirm'):,} confirm items that no proposal"
        " has seen."
    )
    reference = comparison.reference
    title = f"Points above the {REFERENCE_NAME} ({number(reference.score)})" if reference else ""
    return Section(
        id="values",
        title="Value by value on fresh items",
        texts=(text,),
        figures=(
            *figures("Each value's best candidate with its intervals", charts.compared(comparison)),
            *figures("One axis down, the other across", charts.crossed(comparison), title=title),
        ),
        notes=(INTERVALS, *comparison.notes),
        tables=(
            html_table(comparison_table(comparison), SCORES, "Row by row", is_open=True),
            *tests_tables(_labelled(comparison), {REFERENCE_NAME: BASELINE}),
        ),
    )


def _ties(comparison: Comparison) -> Section | None:
    if comparison.tie_set is None:
        return None
    drawn = figures(
        "Every value against every other",
        charts.matrix(comparison),
        title="Points of the row above the column, paired; * told apart",
    )
    return Section(
        id="ties",
        title="What cannot be told apart",
        texts=(comparison.finding,),
        names=comparison.tie_set.labels,
        figures=drawn,
        notes=() if drawn else (MANY_VALUES,),
    )


def _tasks(comparison: Comparison) -> Section | None:
    reference = comparison.reference
    title = f"Points above the {REFERENCE_NAME}, {reference.text}" if reference else ""
    gains = charts.compared_gains(comparison)
    drawn = figures("Each value's gain or loss by task", gains, title=title)
    if not drawn:
        return None
    return Section(id="tasks", title="Task by task", texts=(TRADE,), figures=drawn, notes=(FEWER,))
