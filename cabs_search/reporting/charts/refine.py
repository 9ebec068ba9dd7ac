"""Charts of a refinement by gradient."""

from __future__ import annotations

from collections.abc import Sequence

from cabs_search.common.formats import number
from cabs_search.reporting.charts.marks import (
    chart,
    hover_fields,
    known,
    named,
    nominal,
    point,
    quantity,
)
from cabs_search.reporting.charts.theme import HUES, Spec, colour
from cabs_search.results.refinement import RefinedLevel

MOST_CELLS = 1200
"""Most λ in a heat map."""
MOST_NAMES = 40
"""Most groups that are named on the axis."""
CELL_HOVER = (("expert", "expert"), ("group", "tensors"), ("shown", "λ"))
STEP_HOVER = (("line", "level and fold"), ("step", "step"), ("shown", "value"))


def lambdas(levels: Sequence[RefinedLevel]) -> Spec | None:
    """Draw λ by expert and group of the finest level that was kept as a heat map.

    None if that has one λ for each expert, or too many to be seen.
    """
    kept = [level for level in levels if level.kept]
    by_name = kept[-1].by_name if kept else {}
    names = [name.partition(".") for name in by_name]
    groups = list(dict.fromkeys(group for _, _, group in names))
    if len(groups) < 2 or len(by_name) > MOST_CELLS:
        return None
    values = [
        {"expert": expert, "group": group, "lambda": value, "shown": f"{value:.2f}"}
        for (expert, _, group), value in zip(names, by_name.values(), strict=True)
    ]
    experts = list(dict.fromkeys(expert for expert, _, _ in names))
    size = max(known(map(abs, by_name.values()))) or 1.0
    ramp = [colour(name) for name in ("worse", "surface", "accent")]
    scale = {"domain": [-size, 0, size], "range": ramp, "clamp": True, "interpolate": "rgb"}
    if len(groups) <= MOST_NAMES:
        x = named("group", groups, labelAngle=-40 if len(groups) > 8 else 0, orient="top")
    else:
        x = named("group", groups, labels=False, orient="top")
        x["title"] = "tensors in the model's order; point at one for its name"
    place = {"x": x, "y": named("expert", experts), "tooltip": hover_fields(CELL_HOVER)}
    fill = {"field": "lambda", "type": "quantitative", "legend": None, "scale": scale}
    deep = {"test": f"abs(datum.lambda) > deep * {size}", "value": colour("surface")}
    text = {"text": {"field": "shown"}, "color": {"condition": deep, "value": colour("ink")}}
    cell = {
        "type": "rect",
        "cornerRadius": 4,
        "stroke": colour("surface"),
        "strokeWidth": 3 if len(groups) <= MOST_NAMES else 0.5,
    }
    layers: list[Spec] = [{"mark": cell, "encoding": place | {"color": fill}}]
    if len(groups) <= 12:  # else numbers would overlap
        layers.append({"mark": {"type": "text", "fontSize": 11.5}, "encoding": place | text})
    return chart(values, 34 * len(experts), layer=layers)


def paths(levels: Sequence[RefinedLevel], objective: str) -> Spec | None:
    """Draw the objective on the folds' own items at each step, a line for each level and fold."""
    values = [
        {
            "level": level.level,
            "line": f"{level.level}, fold {fold}",
            "step": step,
            "loss": loss,
            "shown": f"{loss:.4f}",
        }
        for level in levels
        for fold, path in enumerate(level.paths, 1)
        for step, loss in enumerate(path, 1)
    ]
    if len(values) < 2:
        return None
    hues = {level.level: colour(f"hue{place % HUES}") for place, level in enumerate(levels)}
    axis = {"format": "d", "tickMinStep": 1}
    encoding = {
        "x": quantity("step", "step of the optimizer", values) | {"axis": axis},
        "y": quantity("loss", f"{objective} on the fold's own items", values),
        "color": nominal("level", hues),
        "detail": {"field": "line"},
        "tooltip": hover_fields(STEP_HOVER),
    }
    line = {"type": "line", "strokeWidth": 2, "point": {"size": 50, "filled": True, "opacity": 1}}
    return chart(values, 240, mark=line, encoding=encoding)


def held_out(levels: Sequence[RefinedLevel], objective: str) -> Spec | None:
    """Draw the objective on held-out items before and after each level; None without levels."""
    if not levels:
        return None
    values = [
        {"level": level.level, "loss": loss, "when": when, "shown": number(loss)}
        for level in levels
        for when, loss in zip(("before", "after"), level.loss, strict=True)
    ]
    looks = {"before": colour("faint"), "after": colour("accent")}
    encoding = {
        "y": named("level", [level.level for level in levels]),
        "x": quantity("loss", f"{objective} on held-out items", values),
        "color": nominal("when", looks),
        "tooltip": hover_fields((("level", "level"), ("when", "when"), ("shown", objective))),
    }
    return chart(values, 34 * len(levels), mark=point(90), encoding=encoding)
