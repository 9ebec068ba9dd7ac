"""Record of sampled runs: the texts that finalists wrote after the confirm items, and their scores.

A block's primary key is (recipe, temperature, seed, block, task): no text is recorded twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cabs_search.kinds.base import Outcome
from cabs_search.kinds.generation import Sampling
from cabs_search.record.damage import reads_record
from cabs_search.record.outcomes import Outcomes
from cabs_search.spec.task import Task

SCHEMA = """
CREATE TABLE IF NOT EXISTS sampled (
    recipe TEXT, temperature REAL, seed INTEGER, block INTEGER, task TEXT,
    scores BLOB NOT NULL, texts TEXT NOT NULL,
    PRIMARY KEY (recipe, temperature, seed, block, task));
"""
BY_RUN = """
SELECT recipe, temperature, seed, task, scores, texts FROM sampled
ORDER BY recipe, temperature, seed, block
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledBlock:
    """Texts of one run of a model on a block of items."""

    recipe: str
    """The recipe's key."""
    sampling: Sampling
    block: int
    outcomes: Mapping[str, Outcome]
    """Outcomes by task; a prediction is a text."""


@dataclass(frozen=True, kw_only=True)
class SampledRun:
    """One run of a model on all confirm items of the tasks that generate."""

    recipe: str
    """The recipe's key."""
    sampling: Sampling
    scores: Mapping[str, float]
    """Metric by task."""


class SampledTexts:
    """Sampled runs in the file of a study's record."""

    def __init__(self, outcomes: Outcomes, tasks: Mapping[str, Task]) -> None:
        """Open the table.

        Args:
            outcomes: the record.
            tasks: the study's tasks, by name; those that generate texts have sampled runs.

        """
        self._outcomes, self.path = outcomes, outcomes.path
        self._tasks = {name: task for name, task in tasks.items() if task.kind.generates}
        with outcomes.transaction() as db:
            db.execute(SCHEMA)

    def add(self, blocks: Sequence[SampledBlock]) -> None:
        """Add blocks in one transaction.

        Raises:
            sqlite3.IntegrityError: a block is recorded already.

        """
        rows = []
        for one in blocks:
            key = one.recipe, one.sampling.temperature, one.sampling.seed, one.block
            for task, outcome in one.outcomes.items():
                scores, texts = outcome.scores.astype("<f4"), outcome.predictions.tolist()
                rows.append((*key, task, scores.tobytes(), json.dumps(texts)))
        with self._outcomes.transaction() as db:
            db.executemany("INSERT INTO sampled VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    @reads_record
    def done_blocks(self, recipe: str, sampling: Sampling) -> set[int]:
        """Return the numbers of the blocks that a run has."""
        query = (
            "SELECT DISTINCT block FROM sampled WHERE recipe = ? AND temperature = ? AND seed = ?"
        )
        key = recipe, sampling.temperature, sampling.seed
        with self._outcomes.transaction() as db:
            return {number for (number,) in db.execute(query, key)}

    @reads_record
    def runs(self) -> list[SampledRun]:
        """Return the runs that have all items, by recipe, temperature and seed in this order."""
        scores: dict[tuple[str, Sampling], dict[str, list[bytes]]] = {}
        texts: dict[tuple[str, Sampling], dict[str, list[str]]] = {}
        with self._outcomes.transaction() as db:
            for recipe, temperature, seed, task, stored, written in db.execute(BY_RUN):
                run = recipe, Sampling(temperature=float(temperature), seed=int(seed))
                scores.setdefault(run, {}).setdefault(task, []).append(stored)
                texts.setdefault(run, {}).setdefault(task, []).extend(json.loads(written))
        labels = self._outcomes.labels("confirm") if scores else {}
        found = []
        for (recipe, sampling), by_task in texts.items():
            metrics = {}
            for name, task in self._tasks.items():
                predictions = task.kind.values(by_task.get(name, []))
                own = np.frombuffer(b"".join(scores[recipe, sampling].get(name, [])), "<f4")
                if len(own) != len(predictions):
                    raise ValueError("a sampled block must have a score for each text")
                if len(own) == len(labels[name]):
                    metrics[name] = task.measure.of(own, predictions, labels[name])
            if len(metrics) == len(self._tasks):
                found.append(SampledRun(recipe=recipe, sampling=sampling, scores=metrics))
        return found
