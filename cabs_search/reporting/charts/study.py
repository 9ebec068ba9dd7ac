"""Charts of a study, as specs and as pictures."""

from __future__ import annotations

from cabs_search.reporting.charts.marks import around, chart, hover_fields, known, point, quantity
from cabs_search.reporting.charts.refine import held_out, lambdas, paths
from cabs_search.reporting.charts.rows import ROW_HOVER, dots, row_values, tie_colours
from cabs_search.reporting.charts.search import (
    each_lambda,
    orders,
    predictions,
    progress,
    shared_lambda,
)
from cabs_search.reporting.charts.tasks import front, models, tasks, trade_offs
from cabs_search.reporting.charts.theme import Spec, as_png, colour
from cabs_search.results.leaderboard import Leaderboard


def intervals(board: Leaderboard) -> Spec:
    """Draw every row's confirmed score with its intervals, best first."""
    return dots([row_values(row) for row in sorted(board.rows, key=lambda row: -row.score)])


def optimism(board: Leaderboard) -> Spec | None:
    """Draw confirmed against search scores of merged models; None with fewer than two."""
    values = [
        row_values(row) | {"chosen": row.search_score}
        for row in models(board)
        if row.search_score is not None
    ]
    if len(values) < 2:
        return None
    x = quantity("chosen", "search score, by which it was chosen", values)
    x |= {"scale": around(values, "chosen")}
    y = quantity("score", "score on the confirm split", values) | {"scale": around(values, "score")}
    scores = [value[name] for value in values for name in ("chosen", "score")]
    ends = (min(known(scores)) - 1, max(known(scores)) + 1)
    equal = [{"chosen": end, "score": end} for end in ends]
    dashed = {"type": "line", "clip": True, "strokeDash": [4, 4], "strokeWidth": 1}
    place = {"x": x, "y": y}
    shown = {"color": tie_colours(values), "tooltip": hover_fields(ROW_HOVER)}
    return chart(
        values,
        260,
        layer=[
            {
                "data": {"values": equal},
                "mark": dashed | {"color": colour("muted")},
                "encoding": place,
            },
            {"mark": point(80), "encoding": place | shown},
        ],
    )


def pictures(board: Leaderboard) -> dict[str, bytes]:
    """Draw a study's charts as PNG, by name."""
    found = board.refinement
    levels, objective = (found.levels, found.objective) if found else ((), "")
    charts: dict[str, list[Spec | None]] = {
        "leaderboard": [intervals(board)] if board.rows else [],
        "tasks": [tasks(board)] if board.rows else [],
        "trade-offs": [trade_offs(board)],
        "pareto-front": [front(board)],
        "shared-lambda": [shared_lambda(board.tried)],
        "each-lambda": [*each_lambda(board.tried)],
        "orders": [orders(board.tried)],
        "items-spent": [progress(board.tried)],
        "predictions": [
            predictions(board.recommendation.predictions if board.recommendation else ())
        ],
        "refined": [lambdas(levels), held_out(levels, objective), paths(levels, objective)],
    }
    drawn = {name: [spec for spec in specs if spec is not None] for name, specs in charts.items()}
    return {name: as_png(*specs) for name, specs in drawn.items() if specs}
