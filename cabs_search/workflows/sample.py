"""Sample a study's finalists on the confirm split, run by run, each with a seed of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.recipe import BASE, Recipe
from cabs_search.record.comparison_file import is_comparison
from cabs_search.record.folder import StudyFolder, only_driver
from cabs_search.record.outcomes import Outcomes
from cabs_search.results.leaderboard import Leaderboard, read_leaderboard
from cabs_search.results.rows import FOUND, RECOMMENDED, Row
from cabs_search.results.sampled import Sampled, sampled
from cabs_search.scoring.generate import Sampling, generate, outcome_of
from cabs_search.scoring.workbench import Workbench
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items
from cabs_search.tasks.load import load_items
from cabs_search.workflows.export import scored_vectors

LEAST_RUNS = 2


def sample(
    folder: str | Path, *, runs: int, temperature: float, say: Callable[[str], None]
) -> Sampled:
    """Sample base, experts, best baselines, and what was recommended or found best.

    Runs that are on record are not repeated.

    Args:
        folder: a study's folder, with rows confirmed.
        runs: runs of each row, two at the least; their seeds count from 1.
        temperature: what logits are divided by, above 0.
        say: receives a line about each row's progress.

    Raises:
        ValueError: there is no such study, nothing is confirmed, or no task generates texts.

    """
    if runs < LEAST_RUNS or not 0 < temperature < float("inf"):
        raise ValueError(
            f"runs >= {LEAST_RUNS} and temperature > 0 must hold, but got (runs={runs},"
            f" temperature={temperature:g})"
        )
    if is_comparison(Path(folder)):
        raise ValueError(f"{folder}: a study is needed, but it is a comparison")
    board, study = read_leaderboard(folder), StudyFolder(Path(folder))
    rows = _finalists(board)
    spec = load(study.spec)
    names = [name for name, task in spec.tasks.items() if task.kind.generates]
    if not rows or not names:
        what = "task generates texts" if rows else "row is confirmed yet"
        raise ValueError(f"{folder}: no {what}")
    with only_driver(study.path):
        outcomes = Outcomes(study.outcomes, spec.tasks, must_exist=True)
        runs_of = _Runs(spec, outcomes, _items(spec, names, outcomes))
        scores: dict[str, list[float]] = {}
        for row in rows:
            say(f"sampling {row.label}")
            drawn = (Sampling(temperature=temperature, seed=seed) for seed in range(1, runs + 1))
            scores[row.label] = [runs_of.score(row, sampling) for sampling in drawn]
    return sampled(spec.name, temperature, names, rows, scores, board.baseline)


def _finalists(board: Leaderboard) -> list[Row]:
    """Return the rows to sample, each model once."""
    found: dict[str, Row] = {}
    for row in board.rows:
        is_last = row.role != "candidate" or row.label in (RECOMMENDED, FOUND)
        if row.recipe is not None and row.key is not None and is_last:
            found.setdefault(row.key, row)
    return list(found.values())


def _items(spec: Spec, names: Sequence[str], outcomes: Outcomes) -> dict[str, Items]:
    """Return the confirm items of tasks; raise ValueError if they are others than those scored."""
    items = {name: load_items(spec, name)["confirm"] for name in names}
    known = {one.task: one.digest for one in outcomes.bound() if one.split == "confirm"}
    for name, found in items.items():
        if found.digest != known[name]:
            raise ValueError(
                f"tasks.{name}: the items must be those that were searched with, but the data has"
                " changed"
            )
    return items


class _Runs:
    """Runs of rows, made on one resident model, which is loaded when the first is needed."""

    def __init__(self, spec: Spec, outcomes: Outcomes, items: Mapping[str, Items]) -> None:
        self._spec, self._outcomes, self._items = spec, outcomes, items
        self._bench: Workbench | None = None
        self._present = ""
        """Key of the recipe that the model has become."""

    def score(self, row: Row, sampling: Sampling) -> float:
        """Return the mean of the tasks' metrics of a run, from the record if it is there."""
        name = f"sampled {row.key} {sampling.temperature!r} {sampling.seed}"
        kept = self._outcomes.kept_text(name)
        if kept is None:
            kept = json.dumps(self._sample(row, sampling))
            self._outcomes.keep_text(name, kept)
        return float(np.mean([json.loads(kept)[task] for task in self._items]))

    def _sample(self, row: Row, sampling: Sampling) -> dict[str, float]:
        bench = self._become(row)
        found = {}
        for task, items in self._items.items():
            every = np.arange(len(items))
            texts = generate(bench.models[BASE], items, every, bench.device, sampling)
            done = outcome_of(items, every, texts)
            found[task] = items.task.measure.of(done.scores, done.predictions, items.labels)
        return found

    def _become(self, row: Row) -> Workbench:
        spec = self._spec
        if self._bench is None:
            family = Family.open(spec.base, spec.experts, spec.vocabulary, spec.pickled)
            tasks = {name: spec.tasks[name] for name in self._items}
            cache = VectorCache(cache_folder())
            self._bench = Workbench(family, tasks, cache, device=spec.device, dtype=spec.dtype)
        if self._present != row.key:
            recipe = Recipe.from_dict(row.recipe or {})
            vectors = scored_vectors(spec, self._bench.family, recipe)
            self._bench.materialize(recipe, vectors)
            self._present = str(row.key)
        return self._bench
