"""Record landscapes: every item's result for many candidates of one space.

    python -m benchmarks.landscapes [--only NAME ...] [--candidates N]

The quickstart's experts are merged by Task Arithmetic and by CABS, and six others by Task
Arithmetic, with 20 shared λ and λ drawn evenly from the space, and scored on all items of both
splits, by the program itself: its workers, its record. A record is kept in the cache's folder
``landscapes`` and goes on where it stopped; a larger ``--candidates`` adds to it. What was recorded
is written to docs/results/landscapes, where ``benchmarks/search_rivals.py`` reads it: experts that
are tuned on another machine differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks import second_family
from cabs_search.cluster.driver import search
from cabs_search.quickstart.experts import make
from cabs_search.record.folder import StudyFolder, StudyId, only_driver
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.study import Study, open_database
from cabs_search.spec.load import load, parse
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import SplitName
from cabs_search.workflows.prepare import prepare, to_stderr

Floats = npt.NDArray[np.float32]
FILES = Path(__file__).parents[1] / "docs" / "results" / "landscapes"
LAYERS = {f"layer{i}": rf"layer\.{i}\." for i in range(6)}
"""Groups of λ: MiniLM's six layers; embeddings and pooler are not tuned, but for the first."""
SPACES: dict[str, dict[str, Any]] = {
    "task-arithmetic": {
        "method": "task-arithmetic",
        "lambda": {"low": 0.0, "high": 2.0, "step": 0.01},
    },
    "cabs": {
        "method": "cabs",
        "nm": ["3:32", "32:256"],
        "order": [["topic", "headline", "tweets", "lead"], ["lead", "tweets", "headline", "topic"]],
        "lambda": {"low": 0.0, "high": 4.0, "step": 0.01},
    },
    "task-arithmetic-2": {
        "method": "task-arithmetic",
        "lambda": {"low": 0.0, "high": 2.0, "step": 0.01},
    },
    "cabs-2": {
        "method": "cabs",
        "nm": ["3:32", "32:256"],
        "lambda": {"low": 0.0, "high": 4.0, "step": 0.01},
    },
    "layers": {
        "method": "task-arithmetic",
        "lambda": {"low": 0.0, "high": 1.5, "step": 0.01, "groups": {**LAYERS, "other": "."}},
    },
    "second-family": {
        "method": "task-arithmetic",
        "lambda": {"low": 0.0, "high": 1.0, "step": 0.01},
    },
}
TWO = ("tweets", "headline")
"""Experts and tasks of the spaces whose names end in 2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Landscape:
    """Results of many candidates on every item of both splits."""

    keys: list[str]
    """Names of the λ."""
    lambdas: Floats
    """[candidates, λ]."""
    arms: npt.NDArray[np.int64]
    """Number of each candidate's method with its settings, [candidates]."""
    scores: Mapping[SplitName, Mapping[str, Floats]]
    """By split and task, [candidates, items]."""
    losses: Mapping[SplitName, Mapping[str, Floats]]
    """By split and task, [candidates, items]."""


def spec_of(name: str, candidates: int) -> Spec:
    """Return the spec whose candidates a landscape has."""
    is_second = name == second_family.FAMILY
    plain = second_spec() if is_second else load("quickstart", locations=False).as_dict()
    if name.endswith("-2"):
        for field in ("experts", "tasks"):
            plain[field] = {key: plain[field][key] for key in TWO}
    space = SPACES[name]
    shared = [round(space["lambda"]["high"] * share / 20, 2) for share in range(1, 21)]
    plain |= {"name": name, "space": space, "baselines": {space["method"]: {"lambda": shared}}}
    plain["search"] = {
        "trials": candidates + len(shared),
        "confirm": candidates + len(shared),
        "confirm_stops": False,
        "sampler": "quasi-random",
        "block": 75,
    }
    return parse(plain, name)


def second_spec() -> dict[str, Any]:
    """Return the second family's experts and tasks, with as many items as the quickstart's."""
    plain = second_family.plain_spec()
    for task in plain["tasks"].values():
        task |= {"search": {"items": 150}, "confirm": {"items": 300}}
    return plain


def record(name: str, candidates: int, folder: Path) -> None:
    """Score candidates until the record has so many."""
    prepared = prepare(spec_of(name, candidates), folder, None, to_stderr)
    spec = prepared.spec
    with only_driver(folder):
        outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks)
        outcomes.bind(spec, prepared.items, prepared.weights)
        database = open_database(spec, folder, StudyId(outcomes.study_id()))
        study = Study(spec, database, prepared.items, outcomes, confirms_references=False)
        search(study, prepared.items, cache_folder())


def recorded(name: str, folder: Path) -> Landscape:
    """Return what is on record of both splits."""
    spec = spec_of(name, 1)
    outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks, must_exist=True)
    by_split = {split: outcomes.scored(split) for split in ("search", "confirm")}
    both = [key for key in by_split["search"] if key in by_split["confirm"]]
    recipes = [by_split["search"][key].recipe for key in both]
    keys = sorted({key for recipe in recipes for key, _ in recipe.lambdas}, key=str)
    if any(key.group for key in keys):  # one λ of an expert, of shared λ, is that of all its groups
        keys = [key for key in keys if key.group]
    methods = sorted({repr(recipe.method) for recipe in recipes})

    def table(split: SplitName, field: str) -> dict[str, Floats]:
        return {
            task: np.stack([getattr(by_split[split][key].tasks[task], field) for key in both])
            for task in spec.tasks
        }

    lambdas = np.empty((len(recipes), len(keys)), dtype=np.float32)
    for own, recipe in zip(lambdas, recipes, strict=True):
        value = {str(key): value for key, value in recipe.lambdas}
        own[:] = [value.get(str(key), value.get(key.expert)) for key in keys]
    return Landscape(
        keys=[str(key) for key in keys],
        lambdas=lambdas,
        arms=np.array([methods.index(repr(recipe.method)) for recipe in recipes]),
        scores={split: table(split, "scores") for split in by_split},
        losses={split: table(split, "losses") for split in by_split},
    )


def write(landscape: Landscape, path: Path) -> None:
    """Write a landscape of scores that are 0 or 1; losses in half precision."""
    tables: dict[str, npt.NDArray[Any]] = {
        "keys": np.array(landscape.keys),
        "lambdas": landscape.lambdas,
        "arms": landscape.arms,
    }
    for split, by_task in landscape.scores.items():
        for task, scores in by_task.items():
            assert set(np.unique(scores)) <= {0, 1}, task
            tables[f"{split}/{task}/scores"] = scores.astype(np.uint8)
            tables[f"{split}/{task}/losses"] = landscape.losses[split][task].astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **tables)


def read(name: str) -> Landscape:
    """Read a landscape's file."""
    with np.load(FILES / f"{name}.npz") as tables:
        found: dict[str, dict[SplitName, dict[str, Floats]]] = {"scores": {}, "losses": {}}
        for place in tables.files:
            if "/" in place:
                split, task, field = place.split("/")
                by_task = found[field].setdefault(cast("SplitName", split), {})
                by_task[task] = tables[place].astype(np.float32)
        return Landscape(
            keys=tables["keys"].tolist(),
            lambdas=tables["lambdas"],
            arms=tables["arms"],
            scores=found["scores"],
            losses=found["losses"],
        )


def main() -> None:
    """Record the landscapes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="*", default=list(SPACES), choices=list(SPACES))
    parser.add_argument("--candidates", type=int, default=250)
    options = parser.parse_args()
    make()
    if second_family.FAMILY in options.only:
        second_family.make_experts()
    for name in options.only:
        folder, path = cache_folder() / "landscapes" / name, FILES / f"{name}.npz"
        record(name, options.candidates, folder)
        write(recorded(name, folder), path)
        print(f"{name}: {len(read(name).arms)} candidates in {path}")


if __name__ == "__main__":
    main()
