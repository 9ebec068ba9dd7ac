"""Refine λ by gradient, and judge each level on thousands of new items.

    python -m benchmarks.refining [--only METHOD ...] [--items N ...] [--family NAME] [--docs]

For each method and number of search items, one study searches by the response surface and then
refines; a second one has the surface spend what both of these took. All of the data's other rows,
1,500 tweets or more, are fresh items: they choose nothing, and judge all rows, paired. Of the
second family, six other experts (``second_family.py``), these are 1,000 of each task. Studies are
kept in the cache's folder ``refining`` and go on where they stopped; ``--docs`` writes
docs/results/gradients.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import second_family
from cabs_search.cluster.driver import search
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.recipe import Recipe
from cabs_search.quickstart.experts import make
from cabs_search.record.entries import Scored
from cabs_search.record.evaluations import Notes
from cabs_search.record.folder import StudyFolder, StudyId, only_driver
from cabs_search.record.outcomes import Outcomes
from cabs_search.results.leaderboard import board_of
from cabs_search.results.scores import RecordScores
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.study import Study, open_database
from cabs_search.spec.load import load, parse
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items, SplitName
from cabs_search.workflows.prepare import prepare, to_stderr

FILE = Path(__file__).parents[1] / "docs" / "results" / "gradients.json"
PAGE, PICTURE = FILE.with_suffix(".md"), FILE.with_suffix(".png")
HIGH = {"task-arithmetic": 2.0, "cabs": 6.0, "dare": 2.0}
"""Largest λ of each method."""
SEARCH_SHARE = 15
"""Budget of the search, in full evaluations."""
LARGE = 1000
"""Search items a task from which less is done: three shared λ, six full evaluations of search, and
λ refined by tensor alone.
"""
LEAST_TWEETS = 1500
"""Fresh tweets: three more for each search item a task above 150, for what other tasks lack."""
FRESH = 1000
"""Fresh items of each task of the second family, if it has so many."""
FAMILIES = {"quickstart": make, second_family.FAMILY: second_family.make_experts}
"""Families of experts, and what makes them."""
BEGIN, END = "<!-- tables: written by benchmarks.refining -->", "<!-- end of tables -->"


def spec_of(family: str, method: str, items: int, budget: int, *, refines: bool) -> Spec:
    """Return the spec of a study with so many search items of each task."""
    plain: dict[str, Any] = load("quickstart", locations=False).as_dict()
    if family == second_family.FAMILY:
        plain |= second_family.plain_spec()
    shared = [round(HIGH[method] * share / 20, 2) for share in shares_of(items)]
    for name, task in plain["tasks"].items():
        task["search"] = {"items": items}
        if family == second_family.FAMILY:
            is_short = task["text"] == ["text", "other"] and items >= LARGE
            fresh = FRESH + 100 * (items >= LARGE)  # for those that short tasks lack
            task["confirm"] = {} if is_short else {"items": fresh}
        else:
            tweets = LEAST_TWEETS + 3 * max(0, items - 150)
            task["confirm"] = {"items": tweets} if name == "tweets" else {}
    plain |= {
        "name": label_of(family, method, items),
        "space": {
            "method": method,
            "nm": "3:32",
            "density": 0.25,
            "lambda": {"low": 0.0, "high": HIGH[method], "step": 0.01},
        },
        "baselines": {method: {"lambda": shared}},
        "search": {
            "items": budget,
            "block": items // 10,
            "stops": False,
            "confirm": 1,
            "confirm_stops": False,
        },
    }
    if refines:
        levels = ["tensor"] if items >= LARGE else ["expert", "layer", "tensor"]
        plain["search"]["refine"] = {"levels": levels, "steps": 6}
    return parse(plain, plain["name"])


def shares_of(items: int) -> range:
    """Return the shared λ of the grid, in twentieths of the largest."""
    return range(2, 5) if items >= LARGE else range(2, 9)


def label_of(family: str, method: str, items: int) -> str:
    """Return the name of a measurement."""
    start = "" if family == "quickstart" else f"{family} "
    return f"{start}{method} {items}"


def play(spec: Spec, folder: Path) -> tuple[Outcomes, RecordScores]:
    """Search, refine and confirm until all is done; return what is on record."""
    prepared = prepare(spec, folder, None, to_stderr)
    spec = prepared.spec
    with only_driver(folder):
        outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks)
        outcomes.bind(spec, prepared.items, prepared.weights)
        database = open_database(spec, folder, StudyId(outcomes.study_id()))
        tensors = prepared.family.alignment.shared
        study = Study(
            spec, database, prepared.items, outcomes, confirms_references=False, tensors=tensors
        )
        search(study, prepared.items, cache_folder())
    return outcomes, RecordScores.read(outcomes, spec)


def opened(spec: Spec, split: SplitName) -> tuple[Workbench, Mapping[str, Items]]:
    """Return a study's models to score without workers, and its items of a split by task."""
    prepared = prepare(spec, cache_folder() / "refining" / "apart", None, lambda _: None)
    bench = Workbench(prepared.family, spec.tasks, VectorCache(cache_folder()))
    return bench, prepared.items[split]


def scored_apart(spec: Spec, recipes: list[Recipe]) -> dict[str, Scored]:
    """Score recipes on the fresh items: levels that were not kept, which no study confirms."""
    if not recipes:
        return {}
    bench, items = opened(spec, "confirm")
    found = {}
    for recipe in recipes:
        bench.materialize(recipe)
        outcomes = bench.score(items, {task: np.arange(len(its)) for task, its in items.items()})
        scores = {
            task: spec.tasks[task].measure.compute(outcome.predictions, items[task].labels)
            for task, outcome in outcomes.items()
        }
        found[recipe.key] = Scored(recipe, outcomes, scores, 0.0)
    return found


def measure(family: str, method: str, items: int) -> dict[str, Any]:
    """Run both studies; return the rows of the table."""
    name = label_of(family, method, items).replace(" ", "-")
    folder = cache_folder() / "refining" / name
    full = items * len(spec_of(family, method, items, items, refines=False).tasks)
    budget = (2 * len(shares_of(items)) if items >= LARGE else SEARCH_SHARE) * full
    spec = spec_of(family, method, items, budget, refines=True)
    outcomes, scores = play(spec, folder)
    spent = int(outcomes.spent()["refine items"])
    more = spec_of(family, method, items, budget + spent, refines=False)
    _, others = play(more, folder.with_name(f"{name}-surface"))
    note = Notes(outcomes).found
    assert note is not None
    board = board_of(spec, scores)
    rows: dict[str, tuple[str, int]] = {}
    assert board.baseline is not None
    rows["one shared λ, of a grid"] = (
        str(board.row(board.baseline).key),
        len(shares_of(items)) * full,
    )
    rows["response surface"] = (Recipe.from_dict(note["start"]).key, budget)
    so_far = budget
    each = spent // max(1, len(note["levels"]))
    for level in note["levels"]:
        so_far += each
        rows[f"refined by {level['level']}, {level['lambdas']} λ"] = (
            Recipe.from_dict(level["recipe"]).key,
            so_far,
        )
    assert others.recommended is not None
    rows["response surface, as many items"] = (others.recommended.recipe.key, budget + spent)
    confirmed: dict[str, Scored] = {**others.confirmed, **scores.confirmed}
    levels = [Recipe.from_dict(level["recipe"]) for level in note["levels"]]
    confirmed |= scored_apart(spec, [one for one in levels if one.key not in confirmed])
    known = {label: row for label, row in rows.items() if row[0] in confirmed}
    panel = scores.panel(spec.tasks, 0, {key: confirmed[key] for key, _ in known.values()})
    shared = rows["one shared λ, of a grid"][0]
    table = []
    for label, (key, cost) in known.items():
        loss = sum(confirmed[key].losses.values()) / len(spec.tasks)
        row = {"label": label, "items": cost, "score": confirmed[key].score, "loss": loss}
        if key != shared:
            contrast = panel.contrasts([(key, shared)])[0]
            row |= {"difference": contrast.estimate, "interval": list(contrast.interval)}
        table.append(row)
    fresh = sum(len(labels) for labels in scores.labels["confirm"].values())
    kept = [level["level"] for level in note["levels"] if level["kept"]]
    return {
        "family": family,
        "method": method,
        "items": items,
        "fresh": fresh,
        "kept": kept,
        "rows": table,
    }


def points(row: dict[str, Any]) -> str:
    """Write a row's difference in points with its interval; nothing if it has none."""
    if "difference" not in row:
        return ""
    low, high = row["interval"]
    return f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def summary(found: dict[str, Any]) -> str:
    """Write a table of what refining and searching gained in each measurement."""
    lines = [
        "| experts | method | search items a task | fresh items | refined by tensor | response"
        " surface, as many items |",
        "|---|---|---|---|---|---|",
    ]
    for one in found.values():
        *_, refined, surface = one["rows"]
        lines.append(
            f"| {one['family']} | {one['method']} | {one['items']:,} | {one['fresh']:,} |"
            f" {points(refined)} | {points(surface)} |"
        )
    return "\n".join(lines)


def tables(found: dict[str, Any]) -> str:
    """Write the tables of the page."""
    parts = []
    for one in found.values():
        lines = [
            f"### {one['family']}, {one['method']}, {one['items']} search items a task",
            "",
            f"{one['fresh']:,} fresh items.",
            "",
            "| λ from | items spent | fresh score | against one shared λ | fresh loss |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['label']} | {row['items']:,} | {row['score']:.4f} | {points(row)} |"
            f" {row['loss']:.4f} |"
            for row in one["rows"]
        ]
        lines += ["", f"Kept: {', '.join(one['kept']) or 'no level'}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write(text: str, begin: str, end: str) -> None:
    """Put a text between two marks of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def draw(found: dict[str, Any]) -> None:
    """Draw the gain over the best shared λ of every row, with its interval."""
    from matplotlib.figure import Figure

    looks = {
        "response surface, as many items": ("response surface, as many items", "black", 0.3),
        "response surface": ("response surface", "0.6", 0.15),
        "expert": ("refined by expert", "C9", 0.0),
        "layer": ("refined by layer", "C0", -0.15),
        "tensor": ("refined by tensor", "C3", -0.3),
    }
    figure = Figure(figsize=(9, 0.9 * len(found) + 1), layout="constrained")
    ax = figure.subplots()
    for place, one in enumerate(found.values()):
        for row in one["rows"][1:]:
            key = next(
                key for key in looks if row["label"].removeprefix("refined by ").startswith(key)
            )
            label, colour, lift = looks[key]
            if "difference" in row:
                low, high = (100 * end for end in row["interval"])
                ax.plot([low, high], [place - lift] * 2, color=colour, lw=2)
                ax.plot(100 * row["difference"], place - lift, "o", color=colour, label=label)
    names = [f"{one['family']}\n{one['method']}, {one['items']:,} a task" for one in found.values()]
    ax.set_yticks(range(len(found)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="0.4", lw=1)
    ax.set(xlabel="fresh score, points over the best shared λ of a grid (95 % intervals)")
    ax.grid(axis="x", alpha=0.3)
    marks = {mark.get_label(): mark for mark in ax.get_lines() if mark.get_label()[0] != "_"}
    figure.legend(marks.values(), marks.keys(), loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Measure what is asked for, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="*", default=list(HIGH), choices=list(HIGH))
    parser.add_argument("--items", nargs="*", type=int, default=[150])
    parser.add_argument("--family", default="quickstart", choices=list(FAMILIES))
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    FAMILIES[options.family]()
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for items in options.items:
        for method in options.only:
            label = label_of(options.family, method, items)
            found[label] = measure(options.family, method, items)
            FILE.write_text(json.dumps(found, indent=1) + "\n")
            print(tables({label: found[label]}), flush=True)
    if options.docs:
        write(f"{summary(found)}\n\n{tables(found)}", BEGIN, END)
        draw(found)


if __name__ == "__main__":
    main()
