"""Refine from one start by several settings, and judge each on thousands of new items.

    python -m benchmarks.refining_settings [--only METHOD ...] [--docs]

Steps, ridges, optimizers and objectives, with a λ for each expert and tensor. Starts, search items
and fresh items are those of ``benchmarks.refining``, which has run before, with 150 items a task.
``--docs`` writes the second part of docs/results/gradients.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from benchmarks.refining import FILE, HIGH, opened, play, points, scored_apart, spec_of, write
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.record.evaluations import Notes
from cabs_search.record.folder import StudyFolder
from cabs_search.record.outcomes import Outcomes
from cabs_search.scoring.batches import blocks
from cabs_search.search.judge import Judge
from cabs_search.search.refine import refinement
from cabs_search.search.refine.stage import RefineStage
from cabs_search.spec.load import parse
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec

ITEMS = 150
NAME = FILE.with_name("gradients-settings.json")
BEGIN = "<!-- settings: written by benchmarks.refining_settings -->"
END = "<!-- end of settings -->"
STOPPED = "24 steps, the folds stop them"
AWA = "fitness of CABS+, 6 steps"
SETTINGS: dict[str, dict[str, Any]] = {
    "3 steps": {"steps": 3},
    "6 steps": {"steps": 6},
    "8 steps": {"steps": 8},
    "12 steps": {"steps": 12},
    "24 steps": {"steps": 24},
    STOPPED: {"steps": 24},
    "4 steps by layer, then 4": {"steps": 4, "levels": ["layer", "tensor"]},
    "6 steps, ridge 0.3": {"steps": 6, "ridge": 0.3},
    "6 steps, ridge 3": {"steps": 6, "ridge": 3.0},
    "60 steps of Adam, a block each": {"steps": 60, "optimizer": "adam"},
    "without temperatures, 6 steps": {"steps": 6, "calibrated": False},
    AWA: {"steps": 6},
    "entropy, 6 steps": {"steps": 6, "objective": "entropy"},
}
"""Fields of ``search.refine`` by what the table calls them."""


def losses_of(spec: Spec, recipe: Recipe) -> dict[str, list[Any]]:
    """Return a recipe's losses of each block's search items by task."""
    bench, items = opened(spec, "search")
    bench.materialize(recipe)
    assert spec.search.block is not None
    found = [bench.score(items, rows) for rows in blocks(items, spec.search.block)]
    return {task: [outcomes[task].losses.astype(float) for outcomes in found] for task in items}


def measure(method: str) -> dict[str, Any]:
    """Refine by each of the settings; return the rows of the table."""
    root = cache_folder() / "refining"
    folder = root / f"{method}-{ITEMS}-settings"
    if not folder.exists():
        shutil.copytree(root / f"{method}-{ITEMS}", folder)
    budget = 15 * ITEMS * 4
    plain = spec_of("quickstart", method, ITEMS, budget, refines=True).as_dict()
    name = plain["name"]
    rows: dict[str, dict[str, Any]] = {}
    confirmed = {}
    for label, settings in SETTINGS.items():
        plain["search"]["refine"] = {"levels": ["tensor"]} | settings
        spec = parse(plain, name)
        outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks)
        start = Notes(outcomes).start
        assert start is not None
        with ExitStack() as patches:
            if label != STOPPED:
                only_all = patch.object(refinement, "lengths_of", lambda own: [own.steps])
                patches.enter_context(only_all)
            if label == AWA:
                at_one = make_recipe(start.method, dict.fromkeys(start.experts, 1.0))
                losses = losses_of(spec, at_one)
                patches.enter_context(patch.object(Judge, "at_one", at_one))
                patches.enter_context(patch.object(RefineStage, "_losses", return_value=losses))
            outcomes, scores = play(spec, folder)
        note = Notes(outcomes).found
        assert note is not None
        first, level = note["levels"][0], note["levels"][-1]
        recipe = Recipe.from_dict(level["recipe"])
        confirmed |= scores.confirmed
        if recipe.key not in confirmed:
            confirmed |= scored_apart(spec, [recipe])
        panel = scores.panel(spec.tasks, 0, {k: confirmed[k] for k in (start.key, recipe.key)})
        contrast = panel.contrasts([(recipe.key, start.key)])[0]
        rows[label] = {
            "held out": [first["score"][0], level["score"][1]],
            "held-out loss": [first["loss"][0], level["loss"][1]],
            "kept": level["kept"],
            "score": confirmed[recipe.key].score,
            "loss": sum(confirmed[recipe.key].losses.values()) / len(spec.tasks),
            "difference": contrast.estimate,
            "interval": list(contrast.interval),
        }
        print(label, rows[label], flush=True)
    return {"method": method, "start": confirmed[start.key].score, "rows": rows}


def tables(found: Mapping[str, Any]) -> str:
    """Write the tables of the page."""
    parts = []
    for one in found.values():
        lines = [
            f"### quickstart, {one['method']}, 412 λ from the surface's recommendation",
            "",
            f"The start has {one['start']:.4f} on the fresh items.",
            "",
            "| refined by | held-out loss | held-out score | fresh score | against the start |",
            "|---|---|---|---|---|",
        ]
        for label, row in one["rows"].items():
            losses, scores = row["held-out loss"], row["held out"]
            lines.append(
                f"| {label} | {losses[0]:.3f} to {losses[1]:.3f} | {scores[0]:.3f} to"
                f" {scores[1]:.3f} | {row['score']:.4f} | {points(row)} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Measure what is asked for, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--only", nargs="*", default=["task-arithmetic", "cabs"], choices=list(HIGH)
    )
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(NAME.read_text()) if NAME.is_file() else {}
    for method in options.only:
        found[method] = measure(method)
        NAME.write_text(json.dumps(found, indent=1) + "\n")
    if options.docs:
        write(tables(found), BEGIN, END)


if __name__ == "__main__":
    main()
