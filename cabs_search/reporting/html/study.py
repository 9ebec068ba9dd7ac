"""Page of a study."""

from __future__ import annotations

from pathlib import Path

from cabs_search.common.formats import number
from cabs_search.reporting.charts import refine as refine_charts
from cabs_search.reporting.charts import search as search_charts
from cabs_search.reporting.charts import study as study_charts
from cabs_search.reporting.charts import tasks as task_charts
from cabs_search.reporting.html.layout import HtmlRow, HtmlTable, Page, Section, figures
from cabs_search.reporting.html.parts import (
    EARLY,
    FEWER,
    INTERVALS,
    SCORES,
    TRADE,
    as_reported_tables,
    facts_of,
    html_table,
    item_count,
    row_numbers,
    sampled_table,
    tests_tables,
    tied_number,
)
from cabs_search.reporting.tables import has_early_rows, leaderboard_table
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.rows import BASELINE, FOUND, RECOMMENDED, START

MAX_ON_FRONT = 40
"""Most candidates in the table of the Pareto front."""


def study_page(board: Leaderboard, folder: Path) -> Page:
    """Return the page of a study."""
    makers = (
        _leaderboard,
        _ties,
        _tasks,
        _front,
        _lambdas,
        _orders,
        _predictions,
        _refinement,
        _spent,
        _optimism,
    )
    chosen = board.chosen
    what = "recommended" if chosen and chosen.label == RECOMMENDED else "the best found"
    return Page(
        name=board.name,
        kind="search report",
        verdict=board.verdict,
        remarks=() if board.tie_set is None else (board.tie_set.text,),
        figures=(
            *row_numbers(chosen, f"{what}, on fresh items", BASELINE),
            *tied_number(board.tie_set, "confirmed candidates"),
            (
                f"{board.candidates:,}",
                f"candidates scored on all {item_count(board, 'search'):,} search items",
            ),
        ),
        sections=tuple(section for make in makers if (section := make(board)) is not None),
        facts=facts_of(folder),
    )


def _leaderboard(board: Leaderboard) -> Section:
    if not board.rows:
        text = "No row is confirmed yet; the same command goes on with it."
        return Section(id="leaderboard", title="Leaderboard", texts=(text,))
    has_early = has_early_rows(board)
    text = (
        f"{board.candidates:,} candidates were scored on {item_count(board, 'search'):,} search"
        f" items. These rows are scored on {'up to ' * has_early}{item_count(board, 'confirm'):,}"
        " confirm items that no proposal has seen: believe these."
    )
    labelled = [(row.label, row) for row in board.rows]
    says = "Every row's confirmed score with its intervals"
    return Section(
        id="leaderboard",
        title="Leaderboard on fresh items",
        texts=(text, *filter(None, [board.objective, board.calibration])),
        figures=figures(says, study_charts.intervals(board)),
        notes=(INTERVALS, *([EARLY] * has_early)),
        tables=(
            html_table(leaderboard_table(board), SCORES, "Row by row", is_open=True),
            *tests_tables(labelled, {name: name for name in (BASELINE, FOUND, START)}),
            *map(sampled_table, board.sampled),
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
    reference = task_charts.best_baseline(board)
    title = f"Points above the best baseline, {reference.text}" if reference else ""
    gains = figures("Each model's gain or loss by task", task_charts.trade_offs(board), title=title)
    return Section(
        id="tasks",
        title="Task by task",
        texts=(TRADE,),
        figures=(*figures("Every model's metric by task", task_charts.tasks(board)), *gains),
        notes=(FEWER,),
    )


def _front(board: Leaderboard) -> Section | None:
    if not board.front:
        return None
    tasks, confirmed = list(board.items["search"]), {row.key: row for row in board.rows}
    by_key = {candidate.key: candidate for candidate in board.tried}
    lines = []
    for place, key in enumerate(board.front[:MAX_ON_FRONT], 1):
        found, row = by_key[key], confirmed.get(key)
        lines.append(
            HtmlRow(
                label=(row.label if row else f"not confirmed, {place}", found.text),
                cells=tuple(
                    (number(found.tasks[task], 3), number(row.tasks[task], 3) if row else "")
                    for task in tasks
                ),
            )
        )
    table = HtmlTable(
        title="The front, task by task",
        head=("candidate", *tasks),
        lines=tuple(lines),
        note=(
            "On the search items, by which the front is chosen; below, on the confirm items."
            + (f" The first {MAX_ON_FRONT} are listed." if len(board.front) > MAX_ON_FRONT else "")
        ),
        is_open=True,
    )
    text = (
        f"{len(board.front):,} of {board.candidates:,} candidates are on the Pareto front of the"
        " search items: no other candidate is at least as good on every task and better on one."
        " The best mean comes first, then those that are far from others."
    )
    drawn = figures(
        "Metric by task of every candidate on the Pareto front",
        task_charts.front(board),
        title="One line for each candidate of the front, on the confirm items",
    )
    return Section(id="front", title="Pareto front", texts=(text,), figures=drawn, tables=(table,))


def _lambdas(board: Leaderboard) -> Section | None:
    shared = figures(
        "The search score against one shared λ by method",
        search_charts.shared_lambda(board.tried),
        title="One λ for all experts",
    )
    by_expert = figures(
        "The search score of every candidate against each expert's λ",
        *search_charts.each_lambda(board.tried),
        title="Every candidate against each expert's λ; the ring is the best",
    )
    if not shared and not by_expert:
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
        figures=(*shared, *by_expert),
        notes=(note,),
    )


def _orders(board: Leaderboard) -> Section | None:
    drawn = figures("The search score by pruning order", search_charts.orders(board.tried))
    if not drawn:
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
    return Section(id="orders", title="Pruning orders", texts=(text,), figures=drawn, notes=(note,))


def _predictions(board: Leaderboard) -> Section | None:
    if board.recommendation is None:
        return None
    drawn = figures(
        "Search scores against what was predicted of them",
        search_charts.predictions(board.recommendation.predictions),
        title=(
            "Score against prediction with its 90 % interval, grey where only a part of the items"
            " was scored; on the line they are equal"
        ),
    )
    return Section(
        id="predictions",
        title="How well scores were predicted",
        texts=(board.recommendation.text,),
        figures=drawn,
    )


def _refinement(board: Leaderboard) -> Section | None:
    found = board.refinement
    if found is None:
        return None
    objective = found.objective.capitalize()
    drawn = (
        *figures(
            "Refined λ by expert and part of the model",
            refine_charts.lambdas(found.levels),
            title="λ by expert and part of the model, of the finest level that was kept",
        ),
        *figures(
            f"{objective} on held-out items before and after each level",
            refine_charts.held_out(found.levels, found.objective),
            title=f"{objective} on items that a fold has not seen, before and after each level",
        ),
        *figures(
            f"{objective} on each fold's own items at each step",
            refine_charts.paths(found.levels, found.objective),
            title=f"{objective} on each fold's own items at each step",
        ),
    )
    return Section(id="refined", title="λ refined by gradient", texts=(found.text,), figures=drawn)


def _spent(board: Leaderboard) -> Section:
    drawn = figures(
        "The best search score so far against items spent",
        search_charts.progress(board.tried),
        title="Best score so far against items spent",
    )
    return Section(id="spent", title="What it took", texts=board.spent.text, figures=drawn)


def _optimism(board: Leaderboard) -> Section | None:
    if board.optimism is None:
        return None
    drawn = figures(
        "Confirmed against search scores",
        study_charts.optimism(board),
        title="Confirmed against search score; on the line they are equal",
    )
    return Section(
        id="optimism",
        title="How much the search split flatters",
        texts=(board.optimism.text,),
        figures=drawn,
        tables=as_reported_tables(board.as_reported),
    )
