"""Theme of the charts, on the page and as PNG: colours by scheme, symbols, Vega-Lite's config.

Colours are named (``accent``, ``ink``, ...) and come with the config of a scheme, so that one spec
is drawn light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

Spec = dict[str, Any]
"""Chart in Vega-Lite."""
VERSION = "6.4"
"""Version of Vega-Lite, one of those that vl-convert carries."""
FONT = (
    "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial,"
    " sans-serif"
)
HUES = 8
"""Number of colours for methods: hue0 to hue7; the first is the accent."""
SCHEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "accent": "#3451d1",
        "ink": "#1b1f2a",
        "muted": "#667085",
        "faint": "#a3abba",
        "line": "#e6e8ee",
        "surface": "#ffffff",
        "worse": "#b4540a",
        "hue0": "#3451d1",
        "hue1": "#d9730d",
        "hue2": "#0f8a76",
        "hue3": "#a8336b",
        "hue4": "#6b7a90",
        "hue5": "#8a6d00",
        "hue6": "#7a4fd0",
        "hue7": "#1f7fb8",
    },
    "dark": {
        "accent": "#8ea6ff",
        "ink": "#e8eaf0",
        "muted": "#98a1b3",
        "faint": "#626b7d",
        "line": "#262b36",
        "surface": "#12151c",
        "worse": "#f0a35e",
        "hue0": "#8ea6ff",
        "hue1": "#f0a35e",
        "hue2": "#4cc7b0",
        "hue3": "#ea7fb0",
        "hue4": "#a9b4c6",
        "hue5": "#d9bd54",
        "hue6": "#b79bf5",
        "hue7": "#6bbdec",
    },
}
"""Colours of charts and page."""
DEEP = {"light": 0.82, "dark": 0.6}
"""Share of a cell's full colour above which its number is written in the surface's colour."""
CIRCLE = "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z"
SQUARE = "M-.9,-.9H.9V.9H-.9Z"
DIAMOND = "M0,-1.15L1,0L0,1.15L-1,0Z"
TRIANGLE = "M-.9,-1L1,0L-.9,1Z"
BAR = "M-.22,-1.1H.22V1.1H-.22Z"
"""Symbols, within -1.2 and 1.2."""
PICTURE_WIDTH = 640
"""Width in pixels of a chart as PNG."""


def colour(name: str) -> dict[str, str]:
    """Return a colour by its name."""
    return {"expr": name}


def config(scheme: str) -> dict[str, Any]:
    """Return Vega-Lite's config for ``light`` or ``dark``."""
    colours = SCHEMES[scheme]
    return {
        "params": [
            {"name": name, "value": value}
            for name, value in (*colours.items(), ("deep", DEEP[scheme]))
        ],
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": colours["muted"],
            "titleColor": colours["muted"],
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 10,
            "labelPadding": 6,
            "gridColor": colours["line"],
            "domain": False,
            "ticks": False,
            "labelLimit": 230,
            "labelSeparation": 8,
        },
        "axisY": {"titleAnchor": "end"},
        "legend": {
            "labelColor": colours["muted"],
            "labelFontSize": 12,
            "orient": "top",
            "title": None,
            "columns": 5,
            "symbolSize": 80,
            "symbolOpacity": 1,
            "symbolBaseFillColor": colours["muted"],
            "labelLimit": 260,
            "columnPadding": 18,
            "offset": 12,
            "layout": {"top": {"direction": "vertical", "anchor": "start", "margin": 6}},
        },
    }


def as_png(*specs: Spec, scheme: str = "light", scale: float = 2.0) -> bytes:
    """Draw charts as one PNG, several of them two in a row."""
    import vl_convert

    width = PICTURE_WIDTH if len(specs) == 1 else PICTURE_WIDTH // 2
    fixed = [{k: v for k, v in spec.items() if k != "$schema"} | {"width": width} for spec in specs]
    whole = fixed[0] if len(fixed) == 1 else {"concat": fixed, "columns": 2}
    look = config(scheme) | {"background": SCHEMES[scheme]["surface"], "padding": 20}
    picture: bytes = vl_convert.vegalite_to_png(
        deepcopy(whole), vl_version=VERSION, scale=scale, config=look
    )
    return picture


def legend(spec: Spec) -> list[dict[str, str]]:
    """Return the entries of a chart's legend, to be shown outside of the chart."""
    entries: dict[tuple[str, str], dict[str, str]] = {}
    for channel, encoding in _legends(spec):
        for name, value in zip(
            encoding["scale"]["domain"], encoding["scale"]["range"], strict=True
        ):
            entry = entries.setdefault(
                (encoding["field"], name), {"name": name, "colour": "muted", "symbol": CIRCLE}
            )
            entry |= {"symbol": value} if channel == "shape" else {"colour": value["expr"]}
    return list(entries.values())


def _legends(spec: Spec) -> Iterator[tuple[str, dict[str, Any]]]:
    layers: Iterable[Spec] = spec.get("layer", [spec])
    for layer in layers:
        for channel in ("color", "shape"):
            encoding = layer["encoding"].get(channel, {})
            if encoding.get("type") == "nominal" and encoding.get("legend", {}) is not None:
                yield channel, encoding
