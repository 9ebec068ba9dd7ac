"""Charts of rows: scores with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cabs_search.common.formats import as_p, between, number
from cabs_search.reporting.charts.marks import chart, hover_fields, named, nominal, point, quantity
from cabs_search.reporting.charts.theme import (
    BAR,
    CIRCLE,
    CROSS,
    DIAMOND,
    SQUARE,
    TRIANGLE,
    Spec,
    colour,
)
from cabs_search.reporting.tables import gain_texts
from cabs_search.results.rows import BASELINE, Row

ROLES = {
    "candidate": ("candidate", CIRCLE),
    "baseline": ("best shared λ", SQUARE),
    "base": ("base", DIAMOND),
    "expert": ("expert alone", TRIANGLE),
    "ideal": ("ideal", BAR),
    "ensemble": ("ensemble", CROSS),
}
"""Name and symbol of each role of a row."""
TIED, APART = "cannot be told from the best", "all others"
STEP = 22
"""Height of a row in pixels."""
ROW_HOVER = (
    ("label", "row"),
    ("text", "recipe"),
    ("confirm", "confirm"),
    ("simultaneous", "95 %, all rows"),
    ("interval", "95 %, this row"),
    ("scored_on", "scored on"),
    ("search", "search"),
    ("distance", "to best baseline"),
    ("p", "p (Holm)"),
    ("items", "items"),
)
"""Fields of a row that are shown when its mark is pointed at, with their titles."""


def row_values(row: Row, label: str | None = None) -> dict[str, Any]:
    """Return a row's values for its mark."""
    contrast = row.against.get(BASELINE)
    gain = {"distance": "", "p": "", "items": ""}
    if contrast is not None:
        gain = {
            "distance": " ".join(gain_texts(contrast)),
            "p": as_p(contrast.p_holm),
            "items": f"better on {contrast.wins}, worse on {contrast.losses}",
        }
    return gain | {
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
        "scored_on": f"{row.items:,} items",
        "search": number(row.search_score),
    }


def dots(values: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw scores with their own intervals, thick, and with those for all rows together, thin."""
    y = named("label", [value["label"] for value in values])
    x = quantity("score", "score on the confirm split", values, "wide_low", "wide_high")
    roles = {value["role"] for value in values}
    shapes = {name: symbol for name, symbol in ROLES.values() if name in roles}
    shape = nominal("role", shapes)
    thin = {"type": "rule", "strokeWidth": 1.5, "opacity": 0.6}
    thick = {"type": "rule", "strokeWidth": 4, "opacity": 0.35, "strokeCap": "round"}
    shared = {"y": y, "color": tie_colours(values), "tooltip": hover_fields(ROW_HOVER)}
    own = shared | {"x": x | {"field": "low"}, "x2": {"field": "high"}}
    wide = shared | {"x": x | {"field": "wide_low"}, "x2": {"field": "wide_high"}}
    return chart(
        values,
        STEP * len(values),
        layer=[
            {"mark": thin, "encoding": wide},
            {"mark": thick, "encoding": own},
            {"mark": point(95), "encoding": shared | {"x": x, "shape": shape}},
        ],
    )


def tie_colours(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an encoding: colour by whether a row is tied with the best."""
    kinds = {TIED: colour("accent"), APART: colour("faint")}
    return nominal("tie", kinds) | (
        {} if any(value["tie"] == TIED for value in values) else {"legend": None}
    )
