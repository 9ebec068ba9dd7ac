"""What must hold of a search that is complete, whatever was done to it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from benchmarks.chaos_stage import TRIALS, Stage
from tests.conftest import pico_values
from tests.support.server import Server

Blocks = dict[tuple[str, str, int, str], tuple[bytes, bytes]]
"""Scores and losses of blocks by recipe, split, block and task."""


def recorded(out: Path) -> Blocks:
    """Return the blocks on record; none if there is no record yet."""
    path = out / "outcomes" / "outcomes.sqlite"
    if not path.is_file():
        return {}
    with closing(sqlite3.connect(path, timeout=30)) as db, suppress(sqlite3.OperationalError):
        rows = db.execute("SELECT recipe, split, block, task, scores, losses FROM blocks")
        return {row[:4]: row[4:] for row in rows}
    return {}


class Fresh:
    """Evaluates recipes anew, each block once for all searches."""

    def __init__(self, pico: Path, cache: Path) -> None:
        import torch

        from cabs_search.merging.cache import VectorCache
        from cabs_search.merging.family import Family
        from cabs_search.scoring.batches import blocks
        from cabs_search.scoring.workbench import Workbench
        from cabs_search.spec.load import parse
        from cabs_search.tasks.load import load_study_items

        torch.set_num_threads(1)
        spec = parse(pico_values(pico, block=4))
        self._items: Any = load_study_items(spec)
        self._blocks: Any = {split: blocks(items, 4) for split, items in self._items.items()}
        family = Family.open(spec.base, spec.experts)
        self._bench = Workbench(family, spec.tasks, VectorCache(cache), device="cpu")
        self._known: Blocks = {}

    def differing(self, found: Blocks, recipes: dict[str, Any]) -> int:
        """Count blocks whose scores or losses are others."""
        import numpy as np

        for key in sorted({key for key, *_ in found}):
            todo = {(s, b) for k, s, b, t in found if k == key and (k, s, b, t) not in self._known}
            if todo:
                self._bench.materialize(recipes[key])
            for split, block in sorted(todo):
                done = self._bench.score(self._items[split], self._blocks[split][block])
                for task, outcome in done.items():
                    parts = (outcome.scores.astype("<f4"), outcome.losses.astype("<f4"))
                    self._known[key, split, block, task] = (parts[0].tobytes(), parts[1].tobytes())
        count = 0
        for place, (scores, losses) in found.items():
            known = self._known[place]
            is_near = np.allclose(
                np.frombuffer(losses, "<f4"), np.frombuffer(known[1], "<f4"), atol=1e-5
            )
            count += scores != known[0] or not is_near
        return count


def check(stage: Stage, before: Blocks, fresh: Fresh) -> None:
    """Note what does not hold of a search that is complete."""
    from cabs_search.merging.recipe import Recipe
    from cabs_search.results.leaderboard import read_leaderboard

    wrong, found = stage.wrong, recorded(stage.out)
    if read_leaderboard(stage.out).candidates != TRIALS:
        wrong.append("the budget is not complete")
    if lost := sum(found.get(place) != values for place, values in before.items()):
        wrong.append(f"{lost} blocks are lost or changed")
    with closing(sqlite3.connect(stage.out / "outcomes" / "outcomes.sqlite")) as db:
        texts = db.execute("SELECT key, recipe FROM recipes").fetchall()
        recipes = {key: Recipe.from_dict(json.loads(text)) for key, text in texts}
        of_items = db.execute("SELECT split, task, count(*) FROM items GROUP BY split, task")
        counts = {(split, task): count for split, task, count in of_items}
    scored = Counter[tuple[str, str, str]]()
    for (key, split, _, task), (scores, _) in found.items():
        scored[key, split, task] += len(scores) // 4
    if any(count > counts[split, task] for (_, split, task), count in scored.items()):
        wrong.append("items are scored twice")
    if differing := fresh.differing(found, recipes):
        wrong.append(f"{differing} blocks differ from a fresh evaluation")
    _check_trials(stage)
    _check_runs(stage)
    if b"Traceback" in stage.log.read_bytes():
        wrong.append("a traceback was printed")


def _check_trials(stage: Stage) -> None:
    import optuna

    url = stage.environment.get("CABS_SEARCH_STORAGE", f"sqlite:///{stage.out / 'study.db'}")
    states = Counter(
        trial.state.name for trial in optuna.load_study(study_name="pico", storage=url).get_trials()
    )
    if states["RUNNING"] or states["WAITING"]:
        stage.wrong.append("a trial is left running")
    if states["COMPLETE"] != TRIALS:
        stage.wrong.append(f"trials: {dict(states)}")


def _check_runs(stage: Stage) -> None:
    from mlflow import MlflowClient

    uri = stage.environment.get("CABS_SEARCH_TRACKING_URI") or (
        stage.server.uri
        if isinstance(stage.server, Server)
        else f"sqlite:///{stage.out / 'mlflow.db'}"
    )
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("pico")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    numbers = Counter(run.data.tags.get("cabs_search.trial") for run in runs)
    parents = numbers.pop(None, 0)
    if parents != 1 or any(count > 1 for count in numbers.values()):
        stage.wrong.append("MLflow has a run twice")
    if len(numbers) < TRIALS:
        stage.wrong.append(f"MLflow has {len(numbers)} candidates")
