"""What the charts show, as Vega-Lite specs: the leaderboard's and the comparison's numbers and no
others.

Names that users chose are values of the data, never fields or expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cabs_search.common.formats import as_p, between, number, points
from cabs_search.reporting.charts.marks import (
    around,
    chart,
    heat,
    hover_fields,
    known,
    named,
    nominal,
    point,
    quantity,
)
from cabs_search.reporting.charts.theme import (
    BAR,
    CIRCLE,
    DIAMOND,
    HUES,
    SQUARE,
    TRIANGLE,
    Spec,
    as_png,
    colour,
)
from cabs_search.results.leaderboard import BASELINE, Leaderboard, Row, Tried
from cabs_search.results.panel import Contrast

ROLES = {
    "candidate": ("candidate", CIRCLE),
    "baseline": ("best shared λ", SQUARE),
    "base": ("base", DIAMOND),
    "expert": ("expert alone", TRIANGLE),
    "ideal": ("ideal", BAR),
}
"""What a row's role is called, and its symbol."""
TIED, APART = "cannot be told from the best", "all others"
OWN = "each task's own expert"
SHARED_TA = "best shared TA"
MOST, MOST_IN_ALL, MOST_NAMES, MOST_TEXT = 600, 4000, 40, 160
"""Candidates that a chart draws at most, and the charts of each λ together; an axis's names; a
recipe's letters.
"""
STEP = 22
"""Height of a row in pixels."""
SCORES_HOVER = (
    ("label", "row"),
    ("text", "recipe"),
    ("confirm", "confirm"),
    ("simultaneous", "95 %, all rows"),
    ("interval", "95 %, this row"),
    ("search", "search"),
    ("distance", "to best baseline"),
    ("p", "p (Holm)"),
    ("items", "items"),
)
TASK_HOVER = (
    ("label", "row"),
    ("text", "recipe"),
    ("task", "task"),
    ("metric", "metric"),
    ("interval", "95 %"),
)
TRIED_HOVER = (("place", "candidate"), ("text", "recipe"), ("shown", "search score"))


def intervals(board: Leaderboard) -> Spec:
    """Every row of the leaderboard on the confirm split with its intervals, best first."""
    return dots([row_values(row) for row in sorted(board.rows, key=lambda row: -row.score)])


def distance(contrast: Contrast) -> tuple[str, str]:
    """A contrast in points, and its interval."""
    low, high = (points(end) for end in contrast.interval)
    return points(contrast.estimate), f"[{low}, {high}]"


def row_values(row: Row, label: str | None = None) -> dict[str, Any]:
    contrast = row.against.get(BASELINE)
    held = {"distance": "", "p": "", "items": ""}
    if contrast is not None:
        held = {
            "distance": " ".join(distance(contrast)),
            "p": as_p(contrast.p_holm),
            "items": f"better on {contrast.wins}, worse on {contrast.losses}",
        }
    return held | {
        "label": label or row.label,
        "role": ROLES[row.role][0],
        "tie": TIED if row.tied else APART,
        "text": row.text,
        "score": row.score,
        "low": row.interval[0],
        "high": row.interval[1],
        "wide_low": row.simultaneous[0],
        "wide_high": row.simultaneous[1],
        "confirm": number(row.score),
        "interval": between(row.interval),
        "simultaneous": between(row.simultaneous),
        "search": number(row.search_score),
    }


def dots(values: Sequence[Mapping[str, Any]]) -> Spec:
    """Scores with their own intervals, thick, and with those that hold for all at once, thin."""
    y = named("label", [value["label"] for value in values])
    x = quantity("score", "score on the confirm split", values, "wide_low", "wide_high")
    shapes = {
        name: symbol
        for name, symbol in ROLES.values()
        if any(value["role"] == name for value in values)
    }
    shape = nominal("role", shapes)
    both = {"y": y, "color": _ties(values), "tooltip": hover_fields(SCORES_HOVER)}
    own = both | {"x": x | {"field": "low"}, "x2": {"field": "high"}}
    wide = both | {"x": x | {"field": "wide_low"}, "x2": {"field": "wide_high"}}
    return chart(
        values,
        STEP * len(values),
        layer=[
            {"mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.6}, "encoding": wide},
            {
                "mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.35, "strokeCap": "round"},
                "encoding": own,
            },
            {"mark": point(95), "encoding": both | {"x": x, "shape": shape}},
        ],
    )


def _ties(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Colour by whether a row is tied with the best."""
    kinds = {TIED: colour("accent"), APART: colour("faint")}
    return nominal("tie", kinds) | (
        {} if any(value["tie"] == TIED for value in values) else {"legend": None}
    )


def best_baseline(board: Leaderboard) -> Row | None:
    """The shared-λ row that candidates are held against."""
    return None if board.baseline is None else board.row(board.baseline)


def models(board: Leaderboard) -> list[Row]:
    """Candidates and the shared-λ rows that are none of them, best first."""
    found: dict[str | None, Row] = {}
    for row in (
        row for role in ("candidate", "baseline") for row in board.rows if row.role == role
    ):
        found.setdefault(row.key, row)
    return sorted(found.values(), key=lambda row: -row.score)


def tasks(board: Leaderboard) -> Spec:
    """Per task the models of the leaderboard, between base and the task's own expert."""
    reference = best_baseline(board)
    names = {"candidate": "candidate", "base": "base", "ideal": "its own expert"}
    rows = [
        (row, names["candidate"])
        for row in models(board)
        if reference is None or row.key != reference.key
    ]
    rows += [(row, names[row.role]) for row in board.rows if row.role in ("base", "ideal")]
    rows += [] if reference is None else [(reference, "best baseline")]
    return strips(
        [at_task(row, task, kind) for row, kind in rows for task in row.tasks],
        list(board.items["confirm"]),
    )


def strips(values: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Spec:
    """Metrics by task, those of candidates translucent."""
    looks = {
        "candidate": (CIRCLE, "accent"),
        "base": (DIAMOND, "faint"),
        "best baseline": (SQUARE, "ink"),
        "its own expert": (BAR, "ink"),
    }
    present = {
        kind: look for kind, look in looks.items() if any(value["kind"] == kind for value in values)
    }
    encoding = {
        "y": named("task", names),
        "x": quantity("value", "metric on the confirm split", values),
        "color": nominal("kind", {kind: colour(name) for kind, (_, name) in present.items()}),
        "shape": nominal("kind", {kind: symbol for kind, (symbol, _) in present.items()}),
        "opacity": {"condition": {"test": "datum.kind === 'candidate'", "value": 0.45}, "value": 1},
        "tooltip": hover_fields(TASK_HOVER),
    }
    return chart(
        values,
        40 * len(names),
        mark={"type": "point", "filled": True, "size": 110},
        encoding=encoding,
    )


def at_task(row: Row, task: str, kind: str, label: str | None = None) -> dict[str, Any]:
    return {
        "label": label or row.label,
        "text": row.text,
        "task": task,
        "kind": kind,
        "value": row.tasks[task],
        "metric": number(row.tasks[task]),
        "interval": between(row.task_intervals.get(task)),
    }


def trade_offs(board: Leaderboard) -> Spec | None:
    """Each model's metric per task in points above the best baseline's; None without one, or with
    it alone.
    """
    reference = best_baseline(board)
    rows = [
        (row.label, row) for row in models(board) if reference is None or row.key != reference.key
    ]
    if reference is None or not rows:
        return None
    return gains(rows + [(OWN, row) for row in board.rows if row.role == "ideal"], reference)


def gains(rows: Sequence[tuple[str, Row]], reference: Row) -> Spec:
    """Rows' metrics per task in points above those of another."""
    values = []
    for label, row in rows:
        for task, value in row.tasks.items():
            gain = value - reference.tasks[task]
            shown = {
                "gain": 100 * gain,
                "points": points(gain),
                "baseline": number(reference.tasks[task]),
            }
            values.append(at_task(row, task, "", label) | shown)
    return heat(
        values,
        x=named("task", list(reference.tasks), orient="top", labelAngle=0, labelLimit=80),
        y=named("label", [label for label, _ in rows]),
        hover=(*TASK_HOVER, ("baseline", "best baseline"), ("points", "points above it")),
        noise=100
        * max((high - low) / 2 for _, row in rows for low, high in row.task_intervals.values()),
    )


def pictures(board: Leaderboard) -> dict[str, bytes]:
    """A study's charts as PNG, by name."""
    made: dict[str, list[Spec | None]] = {
        "leaderboard": [intervals(board)] if board.rows else [],
        "tasks": [tasks(board)] if board.rows else [],
        "trade-offs": [trade_offs(board)],
        "shared-lambda": [shared_lambda(board)],
        "each-lambda": [*each_lambda(board)],
        "orders": [orders(board)],
        "items-spent": [progress(board)],
    }
    found = {name: [spec for spec in specs if spec is not None] for name, specs in made.items()}
    return {name: as_png(*specs) for name, specs in found.items() if specs}


def drawn(tried: Sequence[Tried], most: int = MOST) -> list[Tried]:
    """At most so many candidates, in the order of their search: the best, for a half, and others
    evenly.
    """
    if len(tried) <= most:
        return list(tried)
    half = most // 2
    chosen = {each.place for each in sorted(tried, key=_rank)[:half]}
    chosen |= {each.place for each in tried[:: -(-len(tried) // half)]}
    return [each for each in tried if each.place in chosen]


def _rank(each: Tried) -> tuple[float, str]:
    return -each.score, each.key


def _dot(each: Tried, **more: Any) -> dict[str, Any]:
    """A candidate as a point of a chart."""
    text = each.text if len(each.text) <= MOST_TEXT else f"{each.text[:MOST_TEXT]}…"
    known = {"place": each.place, "text": text, "method": each.method, "score": each.score}
    return known | {"shown": number(each.score)} | more


def _by_method(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Colour by method, in the order in which methods were first tried."""
    methods = dict.fromkeys(value["method"] for value in values)
    hues = {method: colour(f"hue{place % HUES}") for place, method in enumerate(methods)}
    return nominal("method", hues) | ({} if len(hues) > 1 else {"legend": None})


def shared_lambda(board: Leaderboard) -> Spec | None:
    """The papers' basin: the search score against one λ for all experts, a line for each method."""
    tried = [each for each in board.tried if each.shared is not None]
    if len({each.shared for each in tried}) < 2:
        return None
    lines = (" ".join(filter(None, (each.method, each.amount, each.order))) for each in tried)
    values = [
        _dot(each, shared=each.shared, line=line) for each, line in zip(tried, lines, strict=True)
    ]
    encoding = {
        "x": quantity("shared", "one λ for all experts", values)
        | {"axis": {"format": "~g", "tickCount": 8}},
        "y": quantity("score", "search score", values),
        "color": _by_method(values),
        "detail": {"field": "line"},
        "tooltip": hover_fields((*TRIED_HOVER, ("shared", "λ"))),
    }
    mark = {"type": "line", "strokeWidth": 2, "point": {"size": 60, "filled": True, "opacity": 1}}
    return chart(values, 260, mark=mark, encoding=encoding)


def each_lambda(board: Leaderboard) -> list[Spec]:
    """The candidates' search scores against each expert's λ: a chart for each expert with more than
    one λ.
    """
    keys = dict.fromkeys(key for each in board.tried for key in each.lambdas)
    known = {key: [each for each in board.tried if key in each.lambdas] for key in keys}
    varied = [key for key, tried in known.items() if len({each.lambdas[key] for each in tried}) > 1]
    if not varied:
        return []
    tried, best = (
        drawn(board.tried, min(MOST, MOST_IN_ALL // len(varied))),
        min(board.tried, key=_rank),
    )
    return [_one_lambda(key, tried, best, key == varied[0]) for key in varied]


def _one_lambda(key: str, tried: Sequence[Tried], best: Tried, first: bool) -> Spec:
    values = [_dot(each, **{"lambda": each.lambdas[key]}) for each in tried if key in each.lambdas]
    place = {
        "x": quantity("lambda", f"λ of {key}", values) | {"axis": {"format": "~g", "tickCount": 6}},
        "y": quantity("score", "search score", [_dot(each) for each in tried]),
        "tooltip": hover_fields((*TRIED_HOVER, ("lambda", f"λ of {key}"))),
    }
    by_method = _by_method([_dot(each) for each in tried]) | ({} if first else {"legend": None})
    ring = {
        "type": "point",
        "size": 190,
        "color": colour("ink"),
        "strokeWidth": 1.5,
        "filled": False,
    }
    return chart(
        values,
        200,
        layer=[
            {"mark": point(50) | {"opacity": 0.75}, "encoding": place | {"color": by_method}},
            {
                "transform": [{"filter": f"datum.place === {best.place}"}],
                "mark": ring,
                "encoding": place,
            },
        ],
    )


def orders(board: Leaderboard) -> Spec | None:
    """The search score by pruning order, the orders best by their mean; None where fewer than two
    were tried.
    """
    scores: dict[str, list[float]] = {}
    for each in board.tried:
        if each.order:
            scores.setdefault(each.order, []).append(each.score)
    if len(scores) < 2:
        return None
    means = {order: sum(found) / len(found) for order, found in scores.items()}
    ranked = sorted(means, key=lambda order: (-means[order], order))[:MOST_NAMES]
    values = [
        _dot(each, order=each.order, mean=means[each.order], mean_shown=number(means[each.order]))
        | {"of": len(scores[each.order])}
        for each in drawn([each for each in board.tried if each.order in ranked])
    ]
    y, x = named("order", ranked), quantity("score", "search score", values)
    mean_hover = hover_fields((("order", "order"), ("mean_shown", "mean"), ("of", "candidates")))
    by_method = {
        "color": _by_method(values),
        "tooltip": hover_fields((*TRIED_HOVER, ("order", "order"))),
    }
    tick = {"type": "tick", "thickness": 2.5, "size": 22, "color": colour("ink")}
    return chart(
        values,
        34 * len(ranked),
        layer=[
            {"mark": point(60) | {"opacity": 0.5}, "encoding": {"y": y, "x": x, **by_method}},
            {"mark": tick, "encoding": {"y": y, "x": x | {"field": "mean"}, "tooltip": mean_hover}},
        ],
    )


def progress(board: Leaderboard) -> Spec | None:
    """The best search score so far against the items spent; None with fewer than two candidates."""
    if len(board.tried) < 2:
        return None
    best, values, some = float("-inf"), [], {each.place for each in drawn(board.tried)}
    for each in board.tried:
        is_better, best = each.score > best, max(best, each.score)
        if is_better or each.place in some:
            values.append(_dot(each, items=each.items, best=best, best_shown=number(best)))
    x = quantity("items", "search items scored", values) | {
        "axis": {"format": ",d", "tickCount": 5}
    }
    y = quantity("score", "search score", values)
    hover = hover_fields((*TRIED_HOVER, ("best_shown", "best so far"), ("items", "items so far")))
    line = {
        "type": "line",
        "interpolate": "step-after",
        "strokeWidth": 2.5,
        "color": colour("accent"),
    }
    return chart(
        values,
        240,
        layer=[
            {
                "mark": point(42) | {"color": colour("faint")},
                "encoding": {"x": x, "y": y, "tooltip": hover},
            },
            {"mark": line, "encoding": {"x": x, "y": y | {"field": "best"}, "tooltip": hover}},
        ],
    )


def optimism(board: Leaderboard) -> Spec | None:
    """The confirmed score against the search score of the confirmed models; None with fewer than
    two.
    """
    values = [
        row_values(row) | {"chosen": row.search_score}
        for row in models(board)
        if row.search_score is not None
    ]
    if len(values) < 2:
        return None
    x = quantity("chosen", "search score, by which it was chosen", values) | {
        "scale": around(values, "chosen")
    }
    y = quantity("score", "score on the confirm split", values) | {"scale": around(values, "score")}
    scores = [value[name] for value in values for name in ("chosen", "score")]
    equal = [
        {"chosen": score, "score": score}
        for score in (min(known(scores)) - 1, max(known(scores)) + 1)
    ]
    dashed = {
        "type": "line",
        "clip": True,
        "strokeDash": [4, 4],
        "strokeWidth": 1,
        "color": colour("muted"),
    }
    return chart(
        values,
        260,
        layer=[
            {"data": {"values": equal}, "mark": dashed, "encoding": {"x": x, "y": y}},
            {
                "mark": point(80),
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": _ties(values),
                    "tooltip": hover_fields(SCORES_HOVER),
                },
            },
        ],
    )
