"""Page of replayed searches: docs/results/search.md and its picture, from search.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGE, PICTURE = RESULTS / "search.md", RESULTS / "search.png"
BEGIN, END = "<!-- tables: written by make bench-search -->", "<!-- end of tables -->"
OURS = "surface"
UNEVEN = "-uneven"
"""End of a space's name whose emulator has smaller errors near recorded candidates."""
PANELS = 3
"""Panels of the picture beside each other."""
ENDS = "surface, ends"
CLAIMS = ((5, "tpe", 50), (5, "awa", 300), (20, "tpe", 50), (50, "tpe", 50))
"""Budget of ours, a rival, and its budget."""
Floats = npt.NDArray[np.float64]


def write(kept: Mapping[str, Any], budgets: Sequence[int]) -> None:
    """Write tables and picture of all spaces."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [_table(space, found, budgets) for space, found in kept.items()]
    PAGE.write_text(f"{before}{BEGIN}\n\n{''.join(tables)}{END}{after}", encoding="utf-8")
    draw(kept, budgets)


def _table(space: str, found: Mapping[str, Any], budgets: Sequence[int]) -> str:
    curves = {name: np.array(curve) for name, curve in found["curves"].items() if curve}
    lines = [
        f"### {space}",
        "",
        f"Emulated from {found['candidates']} recorded candidates; the mean score of a candidate"
        f" that was left out is wrong by {100 * found['left out']:.1f} points, where candidates"
        f" differ by {100 * found['spread']:.1f} (standard deviations).",
        "",
        "| recommended by | seeds | " + " | ".join(map(str, budgets)) + " |",
        "|---" * (len(budgets) + 2) + "|",
    ]
    for name, curve in curves.items():
        means = [f"{100 * mean:.1f}" for mean in curve.mean(axis=0)]
        means += [""] * (len(budgets) - len(means))
        lines.append(f"| {name} | {len(curve)} | " + " | ".join(means) + " |")
    for name, shares in found.get("covered", {}).items():
        if shares:
            lines += ["", f"Of *{name}*, 90 % intervals of proposals held {np.mean(shares):.0%}."]
    for name, spent in found.get("ended", {}).items():
        if spent:
            low, middle, high = np.quantile(spent, [0.1, 0.5, 0.9])
            lines += [
                "",
                f"*{name}* ended by itself in {len(spent)} of {len(curves[name])} searches, after"
                f" {middle:.0f} full evaluations (the middle 80 %: {low:.0f} to {high:.0f}).",
            ]
    lines += ["", "| difference, paired over seeds | points | 95 % interval |", "|---|---|---|"]
    claims = [(OURS, *claim) for claim in CLAIMS] + [(ENDS, 50, OURS, 50)]
    for ours, own, rival, budget in claims:
        if min(len(curves.get(name, ())) for name in (ours, rival)) > 1:
            first = curves[ours][:, budgets.index(own)]
            low, mean, high = _paired(first, curves[rival][:, budgets.index(budget)])
            what, interval = f"{ours} at {own} − {rival} at {budget}", f"{low:+.1f} to {high:+.1f}"
            lines.append(f"| {what} | {mean:+.1f} | {interval} |")
    return "\n".join(lines) + "\n\n"


def _paired(ours: Floats, theirs: Floats) -> tuple[float, float, float]:
    """Return the mean difference of scores by seed in points, within its 95 % interval."""
    count = min(len(ours), len(theirs))
    differences = 100 * (ours[:count] - theirs[:count])
    error = float(differences.std(ddof=1)) / np.sqrt(count)
    margin = float(stats.t.ppf(0.975, count - 1)) * error
    mean = float(differences.mean())
    return mean - margin, mean, mean + margin


def draw(results: Mapping[str, Any], budgets: Sequence[int]) -> None:
    """Draw a panel for each space: fresh score against full evaluations."""
    from matplotlib.figure import Figure

    # of two emulators of one landscape, the first
    twice = {space + UNEVEN for space in results}
    kept = {space: found for space, found in results.items() if space not in twice}
    lines_of_panels = -(-len(kept) // PANELS)
    figure = Figure(figsize=(1.5 + 4.5 * PANELS, 4.2 * lines_of_panels), layout="constrained")
    axes = figure.subplots(lines_of_panels, PANELS, squeeze=False).ravel()
    # a player has one colour in all panels, also where others are missing
    names = list(dict.fromkeys(name for found in kept.values() for name in found["curves"]))
    for ax, (space, found) in zip(axes, kept.items(), strict=False):
        for name, curve in found["curves"].items():
            if curve and name != ENDS:  # it covers the line of ours
                means = np.mean(curve, axis=0)
                width, colour = (3, "black") if name == OURS else (1.2, f"C{names.index(name)}")
                style = {"color": colour, "lw": width, "ms": 3, "label": name}
                ax.plot(budgets[: len(means)], 100 * means, "o-", **style)
        ax.set(xscale="log", xlabel="full evaluations spent", title=space)
        ax.set(ylabel="fresh score of what is recommended, %")
        ax.set_xticks(budgets, map(str, budgets))
        ax.grid(alpha=0.3)
    for ax in axes[len(kept) :]:
        ax.set_axis_off()
    lines = {line.get_label(): line for ax in axes for line in ax.get_lines()}
    figure.legend(lines.values(), lines.keys(), fontsize=8, loc="outside right center")
    figure.savefig(PICTURE, dpi=110)
