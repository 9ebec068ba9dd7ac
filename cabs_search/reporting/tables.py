"""Leaderboard, comparison and paired tests as plain tables; terminal, page and MLflow write them.

A table holds values. The kind of a column says how its cells are written, a ``Style`` with how
many decimals. A view lists the columns that a writer shows, by kind; a group shares a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cabs_search.common.formats import as_p, between, number, points, points_between
from cabs_search.common.formats import table as padded
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.panel import Contrast
from cabs_search.results.rows import BASELINE, Row

Kind: TypeAlias = str
"""Meaning of a column's cells, one of those that ``written`` knows; else they are texts."""
View = Sequence[Kind | tuple[Kind, ...]]
SHARED_TA = "best shared TA"
GAIN = ("gain", "gain_interval")
TESTED = ("all_rows", "tied", GAIN, "p_holm")
SCORED = ("score", "on", "forwards")
LEADERBOARD: View = ("row", *SCORED, *TESTED, "task", "search", "objective", "recipe")
"""Columns of a leaderboard in the terminal."""
COMPARISON: View = ("row", "task", "score", "forwards", *TESTED, "search", "recipe")
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
        groups = [(kinds,) if isinstance(kinds, str) else kinds for kinds in view]
        found = []
        for kinds in groups:
            places = [[i for i, c in enumerate(self.columns) if c.kind == kind] for kind in kinds]
            found += list(zip(*places, strict=True))
        return found

    def names(self, view: View) -> list[str]:
        """Return the headings of a view: of each group the first column's name."""
        return [self.columns[group[0]].name for group in self.groups(view)]

    def written(self, view: View, style: Style) -> Iterator[list[list[str]]]:
        """Write the cells of a view: by row, by group, by column of the group."""
        groups = self.groups(view)
        for row in self.rows:
            cells = [written(c.kind, v, style) for c, v in zip(self.columns, row, strict=True)]
            yield [[cells[place] for place in group] for group in groups]

    def value(self, row: Sequence[Any], kind: Kind) -> Any:
        """Return a row's value in the only column of a kind."""
        return row[self.groups([kind])[0][0]]


def leaderboard_table(board: Leaderboard) -> Table:
    """Return a leaderboard's rows."""
    tasks = list(board.items["confirm"])
    rows = [_score_cells(row.label, row, tasks) for row in board.rows]
    columns = _columns("confirm", BASELINE, "recipe", tasks)
    if any(row.objective is not None for row in board.rows):
        columns += (Column("objective", "objective"),)
        rows = [(*cells, row.objective) for cells, row in zip(rows, board.rows, strict=True)]
    if has_early_rows(board):
        columns += (Column("on", "on items"),)
        rows = [(*cells, row.items) for cells, row in zip(rows, board.rows, strict=True)]
    if has_ensembles(board.rows):
        columns += (Column("forwards", "forwards"),)
        rows = [(*cells, row.forwards) for cells, row in zip(rows, board.rows, strict=True)]
    return Table(columns, tuple(rows))


def has_ensembles(rows: Iterable[Row]) -> bool:
    """Tell whether some row needs more than one model to read an item."""
    return any(row.forwards > 1 for row in rows)


def has_early_rows(board: Leaderboard) -> bool:
    """Tell whether some row ended before all confirm items were scored."""
    return any(row.items < sum(board.items["confirm"].values()) for row in board.rows)


def comparison_table(comparison: Comparison) -> Table:
    """Return a comparison's rows: base, experts and ideal, the reference, each value's best."""
    tasks = list(comparison.items["confirm"])
    columns = _columns(comparison.score_name, SHARED_TA, "best recipe", tasks)
    labelled = [(row.label, row) for row in comparison.alone]
    if comparison.reference is not None:
        labelled.append((SHARED_TA, comparison.reference))
    rows = [_score_cells(label, row, tasks) for label, row in labelled]
    for line in comparison.lines:
        if line.row is not None:
            rows.append(_score_cells(line.label, line.row, tasks))
        else:
            rows.append((line.label, f"not run: {line.failure}", *[None] * (len(columns) - 2)))
    if has_ensembles(comparison.alone):
        forwards = [row.forwards for _, row in labelled]
        forwards += [1] * len(comparison.lines)
        columns += (Column("forwards", "forwards"),)
        rows = [(*cells, count) for cells, count in zip(rows, forwards, strict=True)]
    return Table(columns, tuple(rows))


def _columns(score: str, reference: str, recipe: str, tasks: Iterable[str]) -> tuple[Column, ...]:
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
        case "score" | "search" | "task":
            digits = style.task if kind == "task" else style.score
            return number(style.scale * value, digits)
        case "objective":
            return number(value, style.score)
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
    cells = [[" ".join(parts).strip() for parts in row] for row in table.written(view, style)]
    return padded([table.names(view), *cells])


def as_markdown(table: Table, view: View) -> str:
    """Write a table in Markdown; intervals stay on one line."""
    names = table.names(view)
    cells = [[" ".join(parts) for parts in row] for row in table.written(view, MARKDOWN)]
    head, *lines = (f"| {' | '.join(row)} |" for row in [names, *cells])
    return "\n".join([head.replace("|  |", "| |"), f"|{'---|' * len(names)}", *lines])


def as_values(table: Table, view: View) -> list[dict[str, Any]]:
    """Return a table's rows as plain numbers and texts, rounded; intervals as two columns."""
    places = [place for group in table.groups(view) for place in group]
    rows = []
    for row in table.rows:
        values: dict[str, Any] = {}
        for place in places:
            column, value = table.columns[place], row[place]
            names = PARTS.get(column.kind, (column.name,))
            parts = value if len(names) > 1 else (value,)
            values |= {name: _plain(column.kind, v) for name, v in zip(names, parts, strict=True)}
        rows.append(values)
    return rows


def _plain(kind: Kind, value: Any) -> Any:
    if kind == "tied":
        return written(kind, value, PLAIN)
    if not isinstance(value, float):
        return value
    return round(100 * value, 2) if kind in GAIN else round(value, 3 if kind == "effect" else 4)
