"""A study's page."""

from __future__ import annotations

from pathlib import Path

from cabs_search.common.formats import between, number
from cabs_search.reporting.charts import study as charts
from cabs_search.reporting.charts.study import distance
from cabs_search.reporting.html.layout import Cell, Figure, Page, Section, Table
from cabs_search.reporting.html.parts import (
    FEWER,
    HEAD,
    INTERVALS,
    TRADE,
    as_reported_tables,
    board_row,
    facts_of,
    item_count,
    tests_table,
    unbroken,
)
from cabs_search.results.leaderboard import BASELINE, FOUND, Leaderboard, Row


def study_page(board: Leaderboard, folder: Path) -> Page:
    """A study's page."""
    made = (_leaderboard, _ties, _tasks, _lambdas, _orders, _spent, _optimism)
    return Page(
        name=board.name,
        kind="search report",
        verdict=board.verdict,
        remarks=() if board.tie_set is None else (board.tie_set.text,),
        figures=_figures(board),
        sections=tuple(
            section for section in (make(board) for make in made) if section is not None
        ),
        facts=facts_of(folder),
    )


def _figures(board: Leaderboard) -> tuple[Cell, ...]:
    figures = []
    if (found := _row(board, FOUND)) is not None:
        figures.append(
            (
                number(found.score),
                f"the best found, on fresh items; 95 % {unbroken(between(found.simultaneous))}",
            )
        )
        if (contrast := found.against.get(BASELINE)) is not None:
            points, interval = distance(contrast)
            figures.append((points, f"points to the best baseline; 95 % {unbroken(interval)}"))
    if board.tie_set is not None:
        tied = f"{len(board.tie_set.labels)} of {board.tie_set.of}"
        figures.append((tied, "confirmed candidates cannot be told from the best of them"))
    figures.append(
        (
            f"{board.candidates:,}",
            f"candidates searched, each on {item_count(board, 'search'):,} items",
        )
    )
    return tuple(figures)


def _row(board: Leaderboard, label: str) -> Row | None:
    return next((row for row in board.rows if row.label == label), None)


def _leaderboard(board: Leaderboard) -> Section:
    if not board.rows:
        text = "No row is confirmed yet; the same command goes on with it."
        return Section(id="leaderboard", title="Leaderboard", texts=(text,))
    names = list(board.items["confirm"])
    head = ("", *HEAD, *names, "search", "to best baseline", "p (Holm)")
    lines = tuple(board_row(row, names) for row in board.rows)
    tests = [tests_table(board.rows, reference) for reference in (BASELINE, FOUND)]
    return Section(
        id="leaderboard",
        title="Leaderboard on fresh items",
        texts=(
            (
                f"{board.candidates:,} candidates were scored on {item_count(board, 'search'):,}"
                f" search items. These rows are scored on {item_count(board, 'confirm'):,} confirm"
                " items that no proposal has seen: believe these."
            ),
        ),
        figures=(
            Figure(
                specs=(charts.intervals(board),),
                says="Every row's confirmed score with its intervals",
            ),
        ),
        notes=(INTERVALS,),
        tables=(
            Table(title="Row by row", head=head, lines=lines, is_open=True),
            *(t for t in tests if t is not None),
        ),
    )


def _ties(board: Leaderboard) -> Section | None:
    if board.tie_set is None:
        return None
    return Section(
        id="ties",
        title="What cannot be told apart",
        texts=(board.tie_set.text,),
        names=board.tie_set.labels,
    )


def _tasks(board: Leaderboard) -> Section | None:
    if not board.rows:
        return None
    figures = [Figure(specs=(charts.tasks(board),), says="Every model's metric by task")]
    drawn, reference = charts.trade_offs(board), charts.best_baseline(board)
    if drawn is not None and reference is not None:
        title = f"Points above the best baseline, {reference.text}"
        figures.append(
            Figure(specs=(drawn,), title=title, says="Each model's gain or loss by task")
        )
    return Section(
        id="tasks", title="Task by task", texts=(TRADE,), figures=tuple(figures), notes=(FEWER,)
    )


def _lambdas(board: Leaderboard) -> Section | None:
    shared, each = charts.shared_lambda(board), charts.each_lambda(board)
    figures = []
    if shared is not None:
        title = "One λ for all experts"
        figures.append(
            Figure(
                specs=(shared,), title=title, says="The search score against one shared λ by method"
            )
        )
    if each:
        title = "Every candidate against each expert's λ; the ring is the best"
        says = "The search score of every candidate against each expert's λ"
        figures.append(Figure(specs=tuple(each), title=title, says=says))
    if not figures:
        return None
    text = (
        "A wide basin forgives a rough λ; a narrow one, or a best at its edge, asks for a finer or"
        " wider search."
    )
    note = (
        "Scores on the search split. The more a method prunes, the larger is the λ that makes up"
        " for it."
    )
    if len(board.tried) > charts.MOST:
        note += (
            f" Of {len(board.tried):,} candidates some are drawn: the best, for a half, and others"
            " evenly."
        )
    return Section(
        id="lambda",
        title="How much λ matters",
        texts=(text,),
        figures=tuple(figures),
        notes=(note,),
    )


def _orders(board: Leaderboard) -> Section | None:
    drawn = charts.orders(board)
    if drawn is None:
        return None
    text = (
        "The expert that is pruned first chooses its weights first. Each dot is a candidate, each"
        " bar their mean."
    )
    note = (
        "Scores on the search split, of candidates that differ in λ as well: a difference of means"
        " is no effect of the order. cabs-search compare SPEC --over order gives each order the"
        " same budget, and tests it."
    )
    tried = len({each.order for each in board.tried if each.order})
    if tried > charts.MOST_NAMES:
        note += f" Of {tried:,} orders the {charts.MOST_NAMES} with the highest means are drawn."
    figures = (Figure(specs=(drawn,), says="The search score by pruning order"),)
    return Section(
        id="orders", title="Pruning orders", texts=(text,), figures=figures, notes=(note,)
    )


def _spent(board: Leaderboard) -> Section:
    drawn = charts.progress(board)
    title, says = (
        "Best score so far against items spent",
        "The best search score so far against items spent",
    )
    figures = () if drawn is None else (Figure(specs=(drawn,), title=title, says=says),)
    return Section(id="spent", title="What it took", texts=board.spent.text, figures=figures)


def _optimism(board: Leaderboard) -> Section | None:
    if board.optimism is None:
        return None
    drawn = charts.optimism(board)
    title, says = (
        "Confirmed against search score; on the line they are equal",
        "Confirmed against search scores",
    )
    figures = () if drawn is None else (Figure(specs=(drawn,), title=title, says=says),)
    return Section(
        id="optimism",
        title="How much the search split flatters",
        texts=(board.optimism.text,),
        figures=figures,
        tables=as_reported_tables(board.as_reported),
    )
