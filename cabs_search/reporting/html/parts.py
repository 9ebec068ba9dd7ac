"""Parts of both pages, a study's and a comparison's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cabs_search.common.formats import between, number, points
from cabs_search.common.redact import without_passwords
from cabs_search.common.versions import versions
from cabs_search.record.folder import StudyFolder
from cabs_search.record.versions_file import joined_versions, recorded_versions
from cabs_search.reporting.html.layout import Cell, Facts, HtmlRow, HtmlTable
from cabs_search.reporting.tables import GAIN, TYPESET, Kind, Table, View, gain_texts, tests_table
from cabs_search.results.as_reported import Reported
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.rows import BASELINE, Row
from cabs_search.results.sampled import NOTE, Sampled
from cabs_search.results.tie_set import TieSet

INTERVALS = (
    "Thin lines: 95 % intervals that hold for all rows at once. Thick: each row's own. Ideal is no"
    " model: each task by its own expert, what a merge without loss would score. Point at a mark"
    " for its numbers."
)
EARLY = (
    "A row on fewer items ended early, as more would change no decision: its score is what it would"
    " have on all items, by those that have them."
)
TRADE = "What a merge gains on one task it may lose on another. A task's own expert is the ceiling."
FEWER = "Single tasks have fewer items than the mean of all: point at a mark for its own interval."
HEADS: dict[Kind, str] = {"score": "score, all at once", "p_holm": "p (Holm)"}
"""Headings of columns, unless the table's own are used."""
LABEL, SCORE = ("row", "recipe"), ("score", "all_rows")
SCORES: View = (
    *(LABEL, SCORE, "this_row", "on", "forwards", "task", "search", "objective", GAIN, "p_holm"),
)
"""Columns of a leaderboard or a comparison."""
TESTS: View = ("row", GAIN, "p", "p_holm", "items", "effect", "test")
"""Columns of paired tests."""
TESTS_NOTE = (
    "Paired on the same items; intervals and Holm's p hold for the whole family. Effect: Cohen's d"
    " of one item's difference. The last columns are the same comparison by other tests, none"
    " adjusted."
)
PAPERS = (
    "The top of each method's search scores as if they were independent runs. They are neighbours,"
    " chosen by the very items they are scored on: these intervals are too narrow and these p too"
    " small. Shown only to set beside papers."
)

DRAWN = (
    "In each run a model answers every item once, drawing tokens by their probabilities instead of"
    " taking the likeliest."
)


def row_numbers(row: Row | None, name: str, reference: str) -> list[Cell]:
    """Return a row's score and its gain over the reference, as far as they are known."""
    if row is None:
        return []
    numbers = [(number(row.score), f"{name}; {_unbroken(between(row.simultaneous))}")]
    if (contrast := row.against.get(BASELINE)) is not None:
        gain, interval = gain_texts(contrast)
        numbers.append((gain, f"points to the {reference}; {_unbroken(interval)}"))
    return numbers


def _unbroken(interval: str) -> str:
    """Name an interval's level; only between the two may a line end."""
    return "95\u00a0% " + interval.replace(" ", "\u00a0")


def tied_number(ties: TieSet | None, what: str = "") -> list[Cell]:
    """Return the size of a tie set of ``what``, if there is one."""
    if ties is None:
        return []
    text = f"{what} cannot be told from the best of them".strip()
    return [(f"{len(ties.labels)} of {ties.of}", text)]


def item_count(results: Leaderboard | Comparison, split: str) -> int:
    """Return the number of items in a split, all tasks together."""
    return sum(results.items[split].values())


def html_table(
    table: Table, view: View, title: str, *, note: str = "", is_open: bool = False
) -> HtmlTable:
    """Write a table for the page: the first cell of a view is the row's label."""
    columns = [table.columns[group[0]] for group in table.groups(view)]
    lines = []
    for row, groups in zip(table.rows, table.written(view, TYPESET), strict=True):
        label, *cells = [(parts[0], parts[1] if len(parts) > 1 else "") for parts in groups]
        apart = table.value(row, "role") in ("base", "expert", "ideal", "ensemble")
        tied = bool(table.value(row, "tied"))
        lines.append(HtmlRow(label=label, cells=tuple(cells), tied=tied, apart=apart))
    return HtmlTable(
        title=title,
        head=tuple(HEADS.get(column.kind, column.name) for column in columns),
        lines=tuple(lines),
        note=note,
        is_open=is_open,
    )


def tests_tables(rows: Sequence[tuple[str, Row]], references: Mapping[str, str]) -> list[HtmlTable]:
    """Write every test of labelled rows, a table for each reference that any is tested against.

    Args:
        rows: rows with their labels.
        references: references by their names on the page.

    """
    tables = {name: tests_table(rows, reference) for name, reference in references.items()}
    return [
        html_table(table, TESTS, f"Tests against the {name}", note=TESTS_NOTE)
        for name, table in tables.items()
        if table.rows
    ]


def as_reported_tables(methods: Sequence[Reported]) -> tuple[HtmlTable, ...]:
    """Write the papers' statistics, labelled as such; no table without methods."""
    lines = tuple(
        HtmlRow(
            label=(method.label, f"top {method.top}"),
            cells=(
                (number(method.mean), between(method.interval)),
                (method.against or "", ""),
                _t_test(method.welch_t, method.welch_p),
                _t_test(method.student_t, method.student_p),
            ),
        )
        for method in methods
    )
    head = ("", "mean, 95 % t-interval", "against", "Welch", "Student")
    table = HtmlTable(title="As papers report it", head=head, lines=lines, note=PAPERS)
    return (table,) if lines else ()


def sampled_table(sampled: Sampled) -> HtmlTable:
    """Write sampled runs of one temperature."""
    lines = tuple(
        HtmlRow(
            label=(row.label, f"{len(row.runs)} runs"),
            cells=(
                (number(row.mean), between(row.interval)),
                (number(row.greedy), ""),
                (points(row.difference), ""),
                _t_test(row.welch_t, row.welch_p),
            ),
        )
        for row in sampled.rows
    )
    head = ("", "mean of runs, 95 % t-interval", "without sampling", f"to {BASELINE}", "Welch")
    title = f"Texts drawn at random: {sampled.title}"
    return HtmlTable(title=title, head=head, lines=lines, note=f"{DRAWN} {NOTE}")


def _t_test(t: float | None, p: float | None) -> Cell:
    if t is None or p is None:
        return "", ""
    return f"t = {t:z.2f}".replace("-", "−"), f"p = {p:.2g}"


def facts_of(folder: Path, *over: str) -> Facts:
    """Return the facts on a folder's study, or comparison ``over`` axes."""
    quoted = shlex.quote(str(folder))
    axes = "".join(f" --over {shlex.quote(axis)}" for axis in over)
    verb = f"compare spec.yaml{axes}" if over else "run spec.yaml"
    recorded = recorded_versions(folder)
    spec = without_passwords(yaml.safe_load(StudyFolder(folder).spec.read_text(encoding="utf-8")))
    return Facts(
        spec=yaml.safe_dump(spec, sort_keys=False, allow_unicode=True),
        commands=(
            f"cabs-search {verb} --output {quoted}",
            f"cabs-search report {quoted}",
            f"cabs-search export {quoted} --to merged",
        ),
        versions=joined_versions(recorded or [versions()]),
        remark="" if recorded else "What searched is not on record. This page was written with:",
    )
