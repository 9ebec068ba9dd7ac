"""Charts of the candidates of a search, on the search split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cabs_search.common.formats import number
from cabs_search.reporting.charts.marks import chart, hover_fields, named, nominal, point, quantity
from cabs_search.reporting.charts.theme import HUES, Spec, colour
from cabs_search.results.recommendation import Prediction
from cabs_search.results.tried import Tried

MAX_DRAWN = 600
"""Most candidates in a chart."""
MAX_DRAWN_IN_ALL = 4000
"""Most candidates in the charts of each λ together."""
MAX_NAMES = 40
"""Most names on an axis."""
MAX_TEXT = 160
"""Most characters of a recipe."""
TRIED_HOVER = (("place", "candidate"), ("text", "recipe"), ("shown", "search score"))


def drawn(tried: Sequence[Tried], most: int = MAX_DRAWN) -> list[Tried]:
    """Choose at most so many candidates, in the order of their search.

    One half are the best, the others are evenly spread over the search.
    """
    if len(tried) <= most:
        return list(tried)
    half = most // 2
    chosen = {candidate.place for candidate in sorted(tried, key=_rank)[:half]}
    chosen |= {candidate.place for candidate in tried[:: -(-len(tried) // half)]}
    return [candidate for candidate in tried if candidate.place in chosen]


def _rank(candidate: Tried) -> tuple[float, str]:
    """Return a key that sorts the best first."""
    return -candidate.rank, candidate.key


def _dot(candidate: Tried, **more: Any) -> dict[str, Any]:
    """Return a candidate's values as a point of a chart."""
    text = candidate.text
    return {
        "place": candidate.place,
        "text": text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…",
        "method": candidate.method,
        "score": candidate.score,
        "shown": number(candidate.score),
        **more,
    }


def _by_method(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an encoding: colour by method, in the order in which methods were first tried."""
    methods = dict.fromkeys(value["method"] for value in values)
    hues = {method: colour(f"hue{place % HUES}") for place, method in enumerate(methods)}
    return nominal("method", hues) | ({} if len(hues) > 1 else {"legend": None})


def shared_lambda(tried: Sequence[Tried]) -> Spec | None:
    """Draw the search score against one λ for all experts, as papers do: a line for each method.

    None with fewer than two such λ.
    """
    shared = [candidate for candidate in tried if candidate.shared is not None]
    if len({candidate.shared for candidate in shared}) < 2:
        return None
    values = [
        _dot(c, shared=c.shared, line=" ".join(filter(None, (c.method, c.amount, c.order))))
        for c in shared
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


def each_lambda(tried: Sequence[Tried]) -> list[Spec]:
    """Draw the search score against λ: a chart for each expert with more than one λ."""
    values_of: dict[str, set[float]] = {}
    for candidate in tried:
        for key, value in candidate.lambdas.items():
            values_of.setdefault(key, set()).add(value)
    varied = [key for key, values in values_of.items() if len(values) > 1]
    if not varied:
        return []
    chosen = drawn(tried, min(MAX_DRAWN, MAX_DRAWN_IN_ALL // len(varied)))
    best = min(tried, key=_rank)
    return [_one_lambda(key, chosen, best, key == varied[0]) for key in varied]


def _one_lambda(key: str, tried: Sequence[Tried], best: Tried, has_legend: bool) -> Spec:
    values = [_dot(c, **{"lambda": c.lambdas[key]}) for c in tried if key in c.lambdas]
    place = {
        "x": quantity("lambda", f"λ of {key}", values) | {"axis": {"format": "~g", "tickCount": 6}},
        "y": quantity("score", "search score", [_dot(c) for c in tried]),
        "tooltip": hover_fields((*TRIED_HOVER, ("lambda", f"λ of {key}"))),
    }
    by_method = _by_method([_dot(c) for c in tried]) | ({} if has_legend else {"legend": None})
    ink, best_only = colour("ink"), [{"filter": f"datum.place === {best.place}"}]
    ring = {"type": "point", "size": 190, "color": ink, "strokeWidth": 1.5, "filled": False}
    return chart(
        values,
        200,
        layer=[
            {"mark": point(50) | {"opacity": 0.75}, "encoding": place | {"color": by_method}},
            {"transform": best_only, "mark": ring, "encoding": place},
        ],
    )


def orders(tried: Sequence[Tried]) -> Spec | None:
    """Draw the search score by pruning order, best mean first; None with fewer than two orders."""
    scores: dict[str, list[float]] = {}
    for candidate in tried:
        if candidate.order:
            scores.setdefault(candidate.order, []).append(candidate.score)
    if len(scores) < 2:
        return None
    means = {order: sum(of_order) / len(of_order) for order, of_order in scores.items()}
    ranked = sorted(means, key=lambda order: (-means[order], order))[:MAX_NAMES]
    values = [
        _dot(
            candidate,
            order=candidate.order,
            mean=means[candidate.order],
            mean_shown=number(means[candidate.order]),
            of=len(scores[candidate.order]),
        )
        for candidate in drawn([c for c in tried if c.order in ranked])
    ]
    y, x = named("order", ranked), quantity("score", "search score", values)
    mean_hover = hover_fields((("order", "order"), ("mean_shown", "mean"), ("of", "candidates")))
    hover = hover_fields((*TRIED_HOVER, ("order", "order")))
    by_method = {"color": _by_method(values), "tooltip": hover}
    tick = {"type": "tick", "thickness": 2.5, "size": 22, "color": colour("ink")}
    return chart(
        values,
        34 * len(ranked),
        layer=[
            {"mark": point(60) | {"opacity": 0.5}, "encoding": {"y": y, "x": x, **by_method}},
            {"mark": tick, "encoding": {"y": y, "x": x | {"field": "mean"}, "tooltip": mean_hover}},
        ],
    )


def progress(tried: Sequence[Tried]) -> Spec | None:
    """Draw the best search score so far against items; None with fewer than two candidates."""
    if len(tried) < 2:
        return None
    best, values, chosen = float("-inf"), [], {candidate.place for candidate in drawn(tried)}
    for candidate in tried:
        is_better, best = candidate.score > best, max(best, candidate.score)
        if is_better or candidate.place in chosen:
            values.append(
                _dot(candidate, items=candidate.items, best=best, best_shown=number(best))
            )
    axis = {"format": ",d", "tickCount": 5}
    x = quantity("items", "search items scored", values) | {"axis": axis}
    y = quantity("score", "search score", values)
    hover = hover_fields((*TRIED_HOVER, ("best_shown", "best so far"), ("items", "items so far")))
    place, accent = {"x": x, "y": y, "tooltip": hover}, colour("accent")
    line = {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5, "color": accent}
    return chart(
        values,
        240,
        layer=[
            {"mark": point(42) | {"color": colour("faint")}, "encoding": place},
            {"mark": line, "encoding": place | {"y": y | {"field": "best"}}},
        ],
    )


def predictions(found: Sequence[Prediction]) -> Spec | None:
    """Draw scores against predictions with their 90 % intervals; None with fewer than three."""
    if len(found) < 3:
        return None
    values = [
        {
            "expected": one.expected,
            "score": one.score,
            "low": one.low,
            "high": one.high,
            "text": one.text if len(one.text) <= MAX_TEXT else f"{one.text[:MAX_TEXT]}…",
            "shown": number(one.score),
            "predicted": f"{number(one.expected)} [{number(one.low)}, {number(one.high)}]",
            "part": one.is_part,
        }
        for one in found[-MAX_DRAWN:]
    ]
    x = quantity(
        "expected",
        "predicted search score",
        [v | {"expected": v[end]} for v in values for end in ("low", "high")],
    )
    y = quantity("score", "search score", values)
    hover = hover_fields((("text", "recipe"), ("predicted", "predicted"), ("shown", "score")))
    ends = [min(one.low for one in found), max(one.high for one in found)]
    equal = [{"expected": end, "score": end} for end in ends]
    dashed = {"type": "line", "clip": True, "strokeDash": [4, 4], "strokeWidth": 1}
    place = {"y": y, "tooltip": hover}
    span = {"x": x | {"field": "low"}, "x2": {"field": "high"}}
    faint = colour("faint")
    # stopped candidates are drawn fainter
    shade = {
        "condition": {"test": "datum.part", "value": colour("muted")},
        "value": colour("accent"),
    }
    return chart(
        values,
        260,
        layer=[
            {
                "data": {"values": equal},
                "mark": dashed | {"color": colour("muted")},
                "encoding": {"x": x, "y": y},
            },
            {"mark": {"type": "rule", "color": faint}, "encoding": place | span},
            {"mark": point(60), "encoding": place | {"x": x, "color": shade}},
        ],
    )
