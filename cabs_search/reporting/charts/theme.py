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
COLOURS: Mapping[str, tuple[str, str]] = {
    "accent": ("#3451d1", "#8ea6ff"),
    "ink": ("#1b1f2a", "#e8eaf0"),
    "muted": ("#667085", "#98a1b3"),
    "faint": ("#a3abba", "#626b7d"),
    "line": ("#e6e8ee", "#262b36"),
    "surface": ("#ffffff", "#12151c"),
    "worse": ("#b4540a", "#f0a35e"),
    "hue0": ("#3451d1", "#8ea6ff"),
    "hue1": ("#d9730d", "#f0a35e"),
    "hue2": ("#0f8a76", "#4cc7b0"),
    "hue3": ("#a8336b", "#ea7fb0"),
    "hue4": ("#6b7a90", "#a9b4c6"),
    "hue5": ("#8a6d00", "#d9bd54"),
    "hue6": ("#7a4fd0", "#b79bf5"),
    "hue7": ("#1f7fb8", "#6bbdec"),
}
"""Colours of charts and page, on light and on dark, by name."""
SCHEMES: Mapping[str, Mapping[str, str]] = {
    "light": {name: light for name, (light, _) in COLOURS.items()},
    "dark": {name: dark for name, (_, dark) in COLOURS.items()},
}
"""Colours by scheme and name."""
DEEP = {"light": 0.82, "dark": 0.6}
"""Share of a cell's full colour above which its number is written in the surface's colour."""
CIRCLE = "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z"
SQUARE = "M-.9,-.9H.9V.9H-.9Z"
DIAMOND = "M0,-1.15L1,0L0,1.15L-1,0Z"
TRIANGLE = "M-.9,-1L1,0L-.9,1Z"
CROSS = "M-.25,-1H.25V-.25H1V.25H.25V1H-.25V.25H-1V-.25H-.25Z"
BAR = "M-.22,-1.1H.22V1.1H-.22Z"
"""Symbols, within -1.2 and 1.2."""
PICTURE_WIDTH = 640
"""Width in pixels of a chart as PNG."""


def colour(name: str) -> dict[str, str]:
    """Return a colour by its name."""
    return {"expr": name}


def config(scheme: str) -> dict[str, Any]:
    """Return Vega-Lite's config for ``light`` or ``dark``."""
    colours, muted = SCHEMES[scheme], SCHEMES[scheme]["muted"]
    named = {**colours, "deep": DEEP[scheme]}
    text = {"labelColor": muted, "labelFontSize": 12}
    labels = {"labelPadding": 6, "labelLimit": 230, "labelSeparation": 8}
    titles = {"titleColor": muted, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"gridColor": colours["line"], "domain": False, "ticks": False}
    symbols = {"symbolSize": 80, "symbolOpacity": 1, "symbolBaseFillColor": muted}
    entries = {"columns": 5, "columnPadding": 18, "labelLimit": 260}
    place = {"orient": "top", "title": None, "offset": 12}
    layout = {"top": {"direction": "vertical", "anchor": "start", "margin": 6}}
    return {
        "params": [{"name": name, "value": value} for name, value in named.items()],
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": text | labels | titles | {"titlePadding": 10} | lines,
        "axisY": {"titleAnchor": "end"},
        "legend": text | symbols | entries | place | {"layout": layout},
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
        scale = encoding["scale"]
        for name, value in zip(scale["domain"], scale["range"], strict=True):
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
