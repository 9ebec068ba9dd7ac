"""Marks, axes and scales that charts share, as Vega-Lite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cabs_search.common.formats import finite
from cabs_search.reporting.charts.theme import Spec, colour


def heat(
    values: Sequence[Mapping[str, Any]],
    *,
    x: Spec,
    y: Spec,
    hover: Sequence[tuple[str, str]],
    noise: float,
) -> Spec:
    """Draw gains in points as coloured cells with their numbers.

    Args:
        values: cells, with ``gain`` and ``points``.
        x, y: positions.
        hover: fields shown when a cell is pointed at, with their titles.
        noise: size of a gain that may be chance, in points; smaller ones stay pale.

    """
    sizes = sorted(known(abs(value["gain"]) for value in values))
    # the 95th percentile, so that one bad cell does not pale the rest
    most = max(*known([noise]), sizes[int(0.95 * (len(sizes) - 1))], 0.1)
    ramp = [colour(name) for name in ("worse", "surface", "accent")]
    scale = {"domain": [-most, 0, most], "range": ramp, "clamp": True, "interpolate": "rgb"}
    fill = {"field": "gain", "type": "quantitative", "legend": None, "scale": scale}
    deep = {"test": f"abs(datum.gain) > deep * {most}", "value": colour("surface")}
    text = {"text": {"field": "points"}, "color": {"condition": deep, "value": colour("ink")}}
    place = {"x": x, "y": y, "tooltip": hover_fields(hover)}
    cell = {"type": "rect", "cornerRadius": 4, "stroke": colour("surface"), "strokeWidth": 3}
    return chart(
        values,
        26 * len({value["label"] for value in values}),
        layer=[
            {"mark": cell, "encoding": place | {"color": fill}},
            {"mark": {"type": "text", "fontSize": 11.5}, "encoding": place | text},
        ],
    )


def around(values: Sequence[Mapping[str, Any]], field: str) -> dict[str, Any]:
    """Return a scale that ends a little beyond its values."""
    numbers = known(value[field] for value in values)
    room = 0.08 * (max(numbers) - min(numbers)) or 0.005
    return {"zero": False, "nice": False, "domain": [min(numbers) - room, max(numbers) + room]}


def chart(values: Sequence[Mapping[str, Any]], height: int, **rest: Any) -> Spec:
    """Return a chart as wide as its container; numbers that JSON does not know become null."""
    spec: Spec = finite(
        {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
            "data": {"values": list(values)},
            "width": "container",
            "height": height,
            **rest,
        }
    )
    return spec


def known(values: Iterable[float]) -> list[float]:
    """Return the finite values; 0 if there are none."""
    return [value for value in values if math.isfinite(value)] or [0.0]


def quantity(
    field: str, title: str, values: Sequence[Mapping[str, Any]], *others: str
) -> dict[str, Any]:
    """Return a position on a scale of numbers, with decimals to suit its range.

    Args:
        field: the position's field.
        title: the axis's title.
        values: marks.
        others: fields on the same scale.

    """
    numbers = known(value[name] for value in values for name in (field, *others))
    form = ".2f" if max(numbers) - min(numbers) > 0.06 else ".3f"
    scale, axis = {"zero": False}, {"format": form, "tickCount": 6}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def named(field: str, order: Sequence[str], **axis: Any) -> dict[str, Any]:
    """Return a position in a list of names, in the order given."""
    return {"field": field, "type": "nominal", "sort": list(order), "title": None, "axis": axis}


def nominal(field: str, looks: Mapping[str, Any]) -> dict[str, Any]:
    """Return an encoding of a colour or a symbol by name."""
    scale = {"domain": list(looks), "range": list(looks.values())}
    return {"field": field, "type": "nominal", "scale": scale}


def point(size: int) -> dict[str, Any]:
    """Return a filled mark of ``size`` square pixels."""
    return {"type": "point", "filled": True, "size": size, "opacity": 1}


def hover_fields(fields: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return a tooltip of (field, title)."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in fields]
