"""Build and materialize against the number of weights (point 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import families, program
from benchmarks.figures import CORES, Ledger, Target, interleaved, threads
from benchmarks.materialize import alternating
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method

SIZES = tuple(1 << k for k in (20, 22, 24, 26, 27))
"""1 M to 134 M weights; ``make bench-large`` adds LARGE."""
LARGE = 1 << 30
WHATS: Mapping[str, str] = {"build": "two entries built", "materialize": "λ → λ′"}


def measure(ledger: Ledger) -> None:
    """Every size, then the slopes."""
    ledger.series["cost"] = [
        point for point in ledger.series.get("cost", ()) if point["weights"] not in SIZES
    ]
    for weights in SIZES:
        add(ledger, weights)


def add(ledger: Ledger, weights: int) -> None:
    """Measure one size; the slopes are those of all sizes there are."""
    with threads(CORES):
        points = [
            *(p for p in ledger.series.get("cost", ()) if p["weights"] != weights),
            point(weights),
        ]
    points.sort(key=lambda p: p["weights"])
    ledger.series["cost"] = points
    last = next(p for p in points if p["weights"] == weights)
    ledger.say(
        "  "
        + ", ".join(f"{what} {last[name]:.3g} s" for name, what in WHATS.items())
        + f", {weights:,} weights"
    )
    if len(points) < 3:
        return
    ledger.figures = [f for f in ledger.figures if f.part != "size"]
    for name, what in WHATS.items():
        reach = (
            f"{points[0]['weights'] / 1e6:.0f} M to {points[-1]['weights'] / 1e6:,.0f} M weights"
        )
        ledger.add(
            part="size",
            what=f"{what}, 2 experts, cabs 64:256: log-log slope, {reach}",
            value=slope([p["weights"] for p in points], [p[name] for p in points]),
            unit="",
            target=Target(of="value", least=0.95, most=1.05),
            note=(
                f"{points[-1][name] / points[-1]['weights'] * 1e9:.2f} ns a weight at the largest"
                " size"
            ),
        )


def point(weights: int) -> dict[str, Any]:
    """Median seconds of building two entries into an empty cache, and of λ → λ′, float32."""
    with families.scratch() as folder:
        base, experts = families.write(folder / "models", families.flat(weights), 2, torch.float32)
        family = Family.open(base, experts)
        program.hash_models(family)
        method = make_method("cabs", tuple(experts), nm=(64, 256))
        stores = iter([VectorCache(folder / f"cache{i}") for i in range(6)])
        used = []

        def build() -> None:
            used.append(next(stores))
            program.ensure(used[-1], family, method)

        seconds = interleaved(
            {"build": build}, rounds=5 if weights < SIZES[-1] else 2, warm=weights < SIZES[-1]
        )
        held = program.resident(family)
        act = alternating(held, program.vectors(used[-1], family, method), method)
        return {"weights": weights} | seconds | interleaved({"materialize": act}, rounds=9, warm=2)


def slope(weights: Sequence[float], seconds: Sequence[float]) -> float:
    """Of log seconds against log weights, by least squares."""
    x, y = [math.log(w) for w in weights], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)
