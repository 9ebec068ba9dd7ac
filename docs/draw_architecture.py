"""Draw docs/architecture.svg: packages by layer, and which of them import which.

    python docs/draw_architecture.py

Layers are those of the import contract in pyproject.toml; arrows are the imports in the code.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = "cabs_search"
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 760, 40, 150, 28
TOP = 56
STYLE = """
    text { font: 14px system-ui, 'DejaVu Sans', sans-serif; fill: #1c2540; }
    .note { font-size: 12px; fill: #43506e; }
    .box { fill: #e8eefc; stroke: #3b4a6b; stroke-width: 1.5; }
    .near { fill: none; stroke: #3b4a6b; stroke-width: 1.5; marker-end: url(#near); }
    .far { fill: none; stroke: #b9c1d4; stroke-width: 1; marker-end: url(#far); }
"""
MARKER = (
    '<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6"'
    ' orient="auto"><path d="M0 0 10 5 0 10z" fill="{fill}"/></marker>'
)


def layers() -> list[str]:
    """Read the packages of the import contract, from top to bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return list(next(c["layers"] for c in contracts if c["type"] == "layers"))


def arrows() -> dict[str, set[str]]:
    """Find the packages that each package imports."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    imported: dict[str, set[str]] = {package: set() for package in layers()}
    for module in graph.modules:
        for target in graph.find_modules_directly_imported_by(module):
            ends = [name.split(".")[1] for name in (module, target) if "." in name]
            if len(ends) == 2 and ends[0] != ends[1]:
                imported[ends[0]].add(ends[1])
    return imported


def near(imported: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows between whose ends there is no longer way."""
    below: dict[str, set[str]] = {}
    for package in reversed(layers()):
        below[package] = imported[package].union(*(below[p] for p in imported[package]))
    return {
        package: {p for p in targets if not any(p in below[other] for other in targets)}
        for package, targets in imported.items()
    }


def arc(start: int, end: int, side: int, drawn_as: str) -> str:
    """Draw an arrow from one row to a lower one, on the right side (1) or the left (-1)."""
    x = WIDTH / 2 + side * BOX_WIDTH / 2
    bend = x + side * (14 + 13 * (end - start))
    y1, y2 = (TOP + row * ROW + BOX_HEIGHT / 2 for row in (start, end))
    y1, y2 = y1 + 5, y2 - 5
    return (
        f'<path class="{drawn_as}" d="M{x:g} {y1:g}C{bend:g} {y1:g} {bend:g} {y2:g} {x:g} {y2:g}"/>'
    )


def draw() -> str:
    """Return the picture."""
    rows = {package: row for row, package in enumerate(layers())}
    imported = arrows()
    next_below = near(imported)
    count = sum(map(len, imported.values()))
    height = TOP + ROW * len(rows)
    left, right = WIDTH / 2 - BOX_WIDTH / 2, WIDTH / 2 + BOX_WIDTH / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{STYLE}</style>",
        f"<defs>{MARKER.format(name='near', fill='#3b4a6b')}",
        f"{MARKER.format(name='far', fill='#b9c1d4')}</defs>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#f7f8fb"/>',
        f'<text class="note" x="{right:g}" y="30">imports, the next package below</text>',
        f'<text class="note" x="{left:g}" y="30" text-anchor="end">imports further down</text>',
        f'<text class="note" x="16" y="{height - 16}">{len(rows)} packages, {count} arrows</text>',
    ]
    for package, targets in imported.items():
        for target in sorted(targets, key=rows.__getitem__):
            is_near = target in next_below[package]
            side, drawn_as = (1, "near") if is_near else (-1, "far")
            parts.append(arc(rows[package], rows[target], side, drawn_as))
    for package, row in rows.items():
        y = TOP + row * ROW
        size = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"'
        parts.append(f'<rect class="box" x="{left:g}" y="{y}" {size}/>')
        parts.append(f'<text x="{WIDTH // 2}" y="{y + 19}" text-anchor="middle">{package}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
