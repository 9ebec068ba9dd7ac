"""Figures as the documentation shows them: ``make bench-docs``, from bench.json, after ``make
bench``.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.figures import Ledger
from benchmarks.size import WHATS, slope

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: written by make bench-docs -->", "<!-- end of figures -->"


def write(ledger: Ledger) -> None:
    """The table in performance.md, cost.png, and what it is drawn from."""
    page = DOCS / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    figures = ledger.as_markdown()
    if len(points := ledger.series.get("cost", [])) > 1:
        text = json.dumps({"machine": ledger.machine, "points": points}, indent=2)
        (DOCS / "results" / "cost.json").write_text(text + "\n")
        draw(points, DOCS / "cost.png")
        figures += "\n\n![seconds against weights](cost.png)"
    page.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}")


def draw(points: list[dict[str, float]], to: Path) -> None:
    """Seconds against weights, both logarithmic, with lines of slope 1 through the largest size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.subplots()
    weights = [p["weights"] for p in points]
    for name, what in WHATS.items():
        seconds = [p[name] for p in points]
        label = f"{what}: slope {slope(weights, seconds):.2f}"
        (line,) = ax.plot(weights, seconds, marker="o", label=label)
        linear = [seconds[-1] * w / weights[-1] for w in weights]
        ax.plot(weights, linear, linestyle=":", color=line.get_color(), linewidth=1)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="weights",
        ylabel="seconds",
        title="2 experts, cabs 64:256, float32",
    )
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(to, dpi=110)
