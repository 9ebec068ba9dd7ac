"""Leaderboard, comparison and paired tests as plain tables; terminal, page and MLflow write them.

A table holds values. The kind of a column says how its cells are written, a ``Style`` with how
many decimals. A view lists the columns that a writer shows: groups of kinds, a cell each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cabs_search.common.formats import as_p, between, number, points, points_between
from cabs_search.common.formats import table as padded
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.panel import Contrast
from cabs_search.results.rows import BASELINE, Row

Kind = Literal[
    "row",
    "recipe",
    "role",
    "score",
    "all_rows",
    "this_row",
    "tied",
    "gain",
    "gain_interval",
    "p_holm",
    "p",
    "task",
    "search",
    "against",
    "items",
    "effect",
    "test",
]
View = Sequence[tuple[Kind, ...]]
SHARED_TA = "best shared TA"
LEADERBOARD: View = (
    ("row",),
    ("score",),
    ("all_rows",),
    ("tied",),
    ("gain", "gain_interval"),
    ("p_holm",),
    ("task",),
    ("search",),
    ("recipe",),
)
"""Columns of a leaderboard in the terminal."""
COMPARISON: View = (
    ("row",),
    ("task",),
    ("score",),
    ("all_rows",),
    ("tied",),
    ("gain", "gain_interval"),
    ("p_holm",),
    ("search",),
    ("recipe",),
)
"""Columns of a comparison in the terminal, ordered as papers print them."""
PARTS: dict[Kind, tuple[str, ...]] = {
    "row": ("row",),
    "all_rows": ("low", "high"),
    "gain_interval": ("low", "high"),
    "items": ("wins", "losses"),
}
"""Names of columns of plain values, unless the column's own name is one."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """Scale, decimals and signs of the numbers in a table."""

    scale: float = 1.0
    """Factor of scores; 100: in points."""
    score: int = 4
    """Decimals of scores, and so on."""
    task: int = 3
    interval: int = 3
    gain: int = 1
    mark: str = "*"
    """Mark of rows that are tied with the best."""
    brackets: bool = True
    """Intervals as ``[low, high]``, not ``low to high`` without a line break."""
    typeset: bool = False
    """Differences with a minus sign, not a hyphen."""


PLAIN, MARKDOWN, TYPESET = Style(), Style(mark="\\*", brackets=False), Style(typeset=True)
POINTS = Style(scale=100, score=2, task=2, interval=1, gain=2)


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    kind: Kind
    name: str = ""


@dataclass(frozen=True)
class Table:
    """Values by row and column; None where there is nothing to show."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    def groups(self, view: View) -> list[tuple[int, ...]]:
        """Return the places of a view's columns; a kind of several columns is a group for each."""
        places = {
            kind: [i for i, column in enumerate(self.columns) if column.kind == kind]
            for group in view
            for kind in group
        }
        return [group for kinds in view for group in zip(*(places[k] for k in kinds), strict=True)]

    def names(self, view: View) -> list[str]:
        """Return the headings of a view: of each group the first column's name."""
        return [self.columns[group[0]].name for group in self.groups(view)]

    def written(self, view: View, style: Style) -> list[list[list[str]]]:
        """Write the cells of a view: by row, by group, by column of the group."""
        groups = self.groups(view)
        return [[self._group(row, group, style) for group in groups] for row in self.rows]

    def _group(self, row: Sequence[Any], group: Sequence[int], style: Style) -> list[str]:
        return [written(self.columns[i].kind, row[i], style) for i in group]

    def value(self, row: Sequence[Any], kind: Kind) -> Any:
        """Return a row's value in the only column of a kind."""
        return row[self.groups([(kind,)])[0][0]]


def leaderboard_table(board: Leaderboard) -> Table:
    """Return a leaderboard's rows."""
    tasks = list(board.items["confirm"])
    rows = [_score_cells(row.label, row, tasks) for row in board.rows]
    return Table(_score_columns("confirm", BASELINE, "recipe", tasks), tuple(rows))


def comparison_table(comparison: Comparison) -> Table:
    """Return a comparison's rows: base, experts and ideal, the reference, each value's best."""
    tasks = list(comparison.items["confirm"])
    columns = _score_columns("average", SHARED_TA, "best recipe", tasks)
    labelled = [(row.label, row) for row in comparison.alone]
    if comparison.reference is not None:
        labelled.append((SHARED_TA, comparison.reference))
    rows = [_score_cells(label, row, tasks) for label, row in labelled]
    for line in comparison.lines:
        if line.row is not None:
            rows.append(_score_cells(line.label, line.row, tasks))
        else:
            rows.append((line.label, f"not run: {line.failure}", *[None] * (len(columns) - 2)))
    return Table(columns, tuple(rows))


def _score_columns(
    score: str, reference: str, recipe: str, tasks: Iterable[str]
) -> tuple[Column, ...]:
    return (
        Column("row"),
        Column("recipe", recipe),
        Column("role"),
        Column("score", score),
        Column("all_rows", "95 % interval"),
        Column("this_row", "95 %, row by itself"),
        Column("tied", "tied"),
        Column("gain", f"to {reference}"),
        Column("gain_interval"),
        Column("p_holm", "p"),
        Column("search", "search"),
        *(Column("task", task) for task in tasks),
    )


def _score_cells(label: str, row: Row, names: Iterable[str]) -> tuple[Any, ...]:
    contrast, tasks = row.against.get(BASELINE), [row.tasks[name] for name in names]
    gain = (contrast.estimate, contrast.interval, contrast.p_holm) if contrast else (None,) * 3
    scores = (row.score, row.simultaneous, row.interval, row.tied)
    return (label, row.text, row.role, *scores, *gain, row.search_score, *tasks)


def tests_table(rows: Iterable[tuple[str, Row]], *references: str) -> Table:
    """Return every test of labelled rows against ``references``, in points."""
    tests = [
        (label, name, row, row.against[name])
        for label, row in rows
        for name in row.against
        if name in references
    ]
    others = dict.fromkeys(name for *_, contrast in tests for name in contrast.tests)
    columns = (
        Column("row"),
        Column("role"),
        Column("against", "against"),
        Column("tied", "tied"),
        Column("gain", "points"),
        Column("gain_interval"),
        Column("p_holm", "p (Holm)"),
        Column("p", "p"),
        Column("items", "items better : worse"),
        Column("effect", "effect"),
        *(Column("test", name) for name in others),
    )
    cells = (
        (
            *(label, row.role, name, row.tied, contrast.estimate, contrast.interval),
            *(contrast.p_holm, contrast.p_value, (contrast.wins, contrast.losses), contrast.effect),
            *(contrast.tests.get(other) for other in others),
        )
        for label, name, row, contrast in tests
    )
    return Table(columns, tuple(cells))


def gain_texts(contrast: Contrast) -> tuple[str, str]:
    """Write a contrast in points, and its interval."""
    return points(contrast.estimate), points_between(contrast.interval)


def written(kind: Kind, value: Any, style: Style) -> str:
    """Write one cell; empty if there is nothing to show."""
    if value is None:
        return ""
    match kind:
        case "score" | "search":
            return number(style.scale * value, style.score)
        case "task":
            return number(style.scale * value, style.task)
        case "all_rows" | "this_row":
            text = between([style.scale * end for end in value], style.interval)
            return text if style.brackets else text.strip("[]").replace(", ", "\u00a0to\u00a0")
        case "tied":
            return style.mark if value else ""
        case "gain":
            return points(value, style.gain, typeset=style.typeset)
        case "gain_interval":
            return points_between(value, typeset=style.typeset)
        case "p" | "p_holm" | "test":
            return as_p(value)
        case "items":
            return f"{value[0]} : {value[1]}"
        case "effect":
            return f"{value:+z.3f}".replace("-", "−")
        case _:
            return str(value)


def as_text(table: Table, view: View, style: Style = PLAIN) -> list[str]:
    """Write a table for a terminal, its columns padded."""
    rows = table.written(view, style)
    cells = [[" ".join(parts).strip() for parts in row] for row in rows]
    return padded([table.names(view), *cells])


def as_markdown(table: Table, view: View) -> str:
    """Write a table in Markdown; intervals stay on one line."""
    names = table.names(view)
    cells = [[" ".join(parts) for parts in row] for row in table.written(view, MARKDOWN)]
    head, *lines = (f"| {' | '.join(row)} |" for row in [names, *cells])
    return "\n".join([head.replace("|  |", "| |"), f"|{'---|' * len(names)}", *lines])


def as_values(table: Table, view: View) -> list[dict[str, Any]]:
    """Return a table's rows as plain numbers and texts, rounded; intervals as two columns."""
    rows = []
    for row in table.rows:
        values: dict[str, Any] = {}
        for place in (place for group in table.groups(view) for place in group):
            column, value = table.columns[place], row[place]
            names = PARTS.get(column.kind, (column.name,))
            parts = value if len(names) > 1 else (value,)
            values |= {name: _plain(column.kind, v) for name, v in zip(names, parts, strict=True)}
        rows.append(values)
    return rows


def _plain(kind: Kind, value: Any) -> Any:
    match kind:
        case "gain" | "gain_interval":
            return round(100 * value, 2)
        case "tied":
            return written(kind, value, PLAIN)
        case "effect":
            return round(value, 3)
    return round(value, 4) if isinstance(value, float) else value
