"""Charts of metrics by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cabs_search.common.formats import between, number, points
from cabs_search.reporting.charts.marks import chart, heat, hover_fields, named, nominal, quantity
from cabs_search.reporting.charts.theme import BAR, CIRCLE, DIAMOND, SQUARE, Spec, colour
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.rows import Row

OWN_EXPERT = "each task's own expert"
ON_FRONT = "on the front"
LOOKS = {
    "candidate": (CIRCLE, "accent"),
    ON_FRONT: (CIRCLE, "accent"),
    "base": (DIAMOND, "faint"),
    "best baseline": (SQUARE, "ink"),
    "its own expert": (BAR, "ink"),
}
"""Symbol and colour of each kind of row."""
TASK_HOVER = (
    ("label", "row"),
    ("text", "recipe"),
    ("task", "task"),
    ("metric", "metric"),
    ("interval", "95 %"),
)


def best_baseline(board: Leaderboard) -> Row | None:
    """Return the shared-λ row that candidates are compared with."""
    return None if board.baseline is None else board.row(board.baseline)


def models(board: Leaderboard) -> list[Row]:
    """Return the merged models, each once, best first."""
    by_key: dict[str | None, Row] = {}
    for role in ("candidate", "baseline"):
        for row in board.rows:
            if row.role == role:
                by_key.setdefault(row.key, row)
    return sorted(by_key.values(), key=lambda row: -row.score)


def tasks(board: Leaderboard) -> Spec:
    """Draw each merged model's metric by task, between base and the task's own expert."""
    reference = best_baseline(board)
    rows = [(row, "candidate") for row in _others(board, reference)]
    names = {"base": "base", "ideal": "its own expert"}
    rows += [(row, names[row.role]) for row in board.rows if row.role in names]
    rows += [] if reference is None else [(reference, "best baseline")]
    values = [at_task(row, task, kind) for row, kind in rows for task in row.tasks]
    return strips(values, list(board.items["confirm"]))


def _others(board: Leaderboard, reference: Row | None) -> list[Row]:
    """Return the merged models but the reference."""
    return [row for row in models(board) if reference is None or row.key != reference.key]


def strips(values: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Spec:
    """Draw metrics by task, those of candidates translucent."""
    encoding = {
        "y": named("task", names),
        "x": quantity("value", "metric on the confirm split", values),
        **_by_kind(values),
        "opacity": {"condition": {"test": "datum.kind === 'candidate'", "value": 0.45}, "value": 1},
        "tooltip": hover_fields(TASK_HOVER),
    }
    mark = {"type": "point", "filled": True, "size": 110}
    return chart(values, 40 * len(names), mark=mark, encoding=encoding)


def _by_kind(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return encodings: colour and symbol by kind of row."""
    kinds = {value["kind"] for value in values}
    present = {kind: look for kind, look in LOOKS.items() if kind in kinds}
    return {
        "color": nominal("kind", {kind: colour(name) for kind, (_, name) in present.items()}),
        "shape": nominal("kind", {kind: symbol for kind, (symbol, _) in present.items()}),
    }


def at_task(row: Row, task: str, kind: str, label: str | None = None) -> dict[str, Any]:
    """Return a row's values for one task's mark."""
    return {
        "label": label or row.label,
        "text": row.text,
        "task": task,
        "kind": kind,
        "value": row.tasks[task],
        "metric": number(row.tasks[task]),
        "interval": between(row.task_intervals.get(task)),
    }


def front(board: Leaderboard) -> Spec | None:
    """Draw the confirmed candidates of the Pareto front, a line each over the tasks.

    None with fewer than two of them, or fewer than two tasks.
    """
    names = list(board.items["confirm"])
    lines = [row for row in models(board) if row.key in board.front]
    if min(len(lines), len(names)) < 2:
        return None
    reference, kinds = best_baseline(board), {"base": "base", "ideal": "its own expert"}
    marked = [(row, kinds[row.role]) for row in board.rows if row.role in kinds]
    marked += [] if reference is None else [(reference, "best baseline")]
    kinds_of = [*((row, ON_FRONT) for row in lines), *marked]
    values = [at_task(row, task, kind) for row, kind in kinds_of for task in names]
    place = {
        "x": named("task", names, orient="bottom", labelAngle=0, labelLimit=110),
        "y": quantity("value", "metric on the confirm split", values),
        "tooltip": hover_fields(TASK_HOVER),
    }
    on_front = {"transform": [{"filter": f"datum.kind === '{ON_FRONT}'"}]}
    line = {"type": "line", "strokeWidth": 1.5, "opacity": 0.5, "color": colour("accent")}
    return chart(
        values,
        280,
        layer=[
            {**on_front, "mark": line, "encoding": place | {"detail": {"field": "label"}}},
            {
                "mark": {"type": "point", "filled": True, "size": 90},
                "encoding": place | _by_kind(values),
            },
        ],
    )


def trade_offs(board: Leaderboard) -> Spec | None:
    """Draw each model's gain over the best baseline by task; None without two models."""
    reference = best_baseline(board)
    rows = [(row.label, row) for row in _others(board, reference)]
    if reference is None or not rows:
        return None
    return gains(rows + [(OWN_EXPERT, row) for row in board.rows if row.role == "ideal"], reference)


def gains(rows: Sequence[tuple[str, Row]], reference: Row) -> Spec:
    """Draw labelled rows' metrics by task in points above those of a reference."""
    values = []
    for label, row in rows:
        for task, value in row.tasks.items():
            base = reference.tasks[task]
            gain = value - base
            shown = {"gain": 100 * gain, "points": points(gain), "baseline": number(base)}
            values.append(at_task(row, task, "", label) | shown)
    return heat(
        values,
        x=named("task", list(reference.tasks), orient="top", labelAngle=0, labelLimit=80),
        y=named("label", [label for label, _ in rows]),
        hover=(*TASK_HOVER, ("baseline", "best baseline"), ("points", "points above it")),
        noise=100
        * max((high - low) / 2 for _, row in rows for low, high in row.task_intervals.values()),
    )
