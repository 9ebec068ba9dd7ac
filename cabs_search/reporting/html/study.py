"""Page of a study."""

from __future__ import annotations

from pathlib import Path

from cabs_search.common.formats import between, number
from cabs_search.reporting.charts import search as search_charts
from cabs_search.reporting.charts import study as study_charts
from cabs_search.reporting.charts import tasks as task_charts
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
from cabs_search.reporting.tables import gain_texts, leaderboard_table
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.rows import BASELINE, FOUND


def study_page(board: Leaderboard, folder: Path) -> Page:
    """Return the page of a study."""
    makers = (_leaderboard, _ties, _tasks, _lambdas, _orders, _spent, _optimism)
    return Page(
        name=board.name,
        kind="search report",
        verdict=board.verdict,
        remarks=() if board.tie_set is None else (board.tie_set.text,),
        figures=_figures(board),
        sections=tuple(section for make in makers if (section := make(board)) is not None),
        facts=facts_of(folder),
    )


def _figures(board: Leaderboard) -> tuple[Cell, ...]:
    figures = []
    found = next((row for row in board.rows if row.label == FOUND), None)
    if found is not None:
        figures.append(
            (
                number(found.score),
                f"the best found, on fresh items; 95 % {unbroken(between(found.simultaneous))}",
            )
        )
        if (contrast := found.against.get(BASELINE)) is not None:
            points, interval = gain_texts(contrast)
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


def _leaderboard(board: Leaderboard) -> Section:
    if not board.rows:
        text = "No row is confirmed yet; the same command goes on with it."
        return Section(id="leaderboard", title="Leaderboard", texts=(text,))
    labelled = [(row.label, row) for row in board.rows]
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
                specs=(study_charts.intervals(board),),
                says="Every row's confirmed score with its intervals",
            ),
        ),
        notes=(INTERVALS,),
        tables=(
            html_table(leaderboard_table(board), SCORES, "Row by row", is_open=True),
            *tests_tables(labelled, {BASELINE: BASELINE, FOUND: FOUND}),
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
    figures = [Figure(specs=(task_charts.tasks(board),), says="Every model's metric by task")]
    drawn, reference = task_charts.trade_offs(board), task_charts.best_baseline(board)
    if drawn is not None and reference is not None:
        title = f"Points above the best baseline, {reference.text}"
        figures.append(
            Figure(specs=(drawn,), title=title, says="Each model's gain or loss by task")
        )
    return Section(
        id="tasks", title="Task by task", texts=(TRADE,), figures=tuple(figures), notes=(FEWER,)
    )


def _lambdas(board: Leaderboard) -> Section | None:
    shared, by_expert = (
        search_charts.shared_lambda(board.tried),
        search_charts.each_lambda(board.tried),
    )
    figures = []
    if shared is not None:
        title = "One λ for all experts"
        figures.append(
            Figure(
                specs=(shared,), title=title, says="The search score against one shared λ by method"
            )
        )
    if by_expert:
        title = "Every candidate against each expert's λ; the ring is the best"
        says = "The search score of every candidate against each expert's λ"
        figures.append(Figure(specs=tuple(by_expert), title=title, says=says))
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
    if len(board.tried) > search_charts.MAX_DRAWN:
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
    drawn = search_charts.orders(board.tried)
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
    tried = len({candidate.order for candidate in board.tried if candidate.order})
    if tried > search_charts.MAX_NAMES:
        note += (
            f" Of {tried:,} orders the {search_charts.MAX_NAMES} with the highest means are drawn."
        )
    figures = (Figure(specs=(drawn,), says="The search score by pruning order"),)
    return Section(
        id="orders", title="Pruning orders", texts=(text,), figures=figures, notes=(note,)
    )


def _spent(board: Leaderboard) -> Section:
    drawn = search_charts.progress(board.tried)
    title, says = (
        "Best score so far against items spent",
        "The best search score so far against items spent",
    )
    figures = () if drawn is None else (Figure(specs=(drawn,), title=title, says=says),)
    return Section(id="spent", title="What it took", texts=board.spent.text, figures=figures)


def _optimism(board: Leaderboard) -> Section | None:
    if board.optimism is None:
        return None
    drawn = study_charts.optimism(board)
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
