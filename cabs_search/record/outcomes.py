"""Per-item results of every candidate, on disk: the record that everything else is computed from.

One SQLite file, written by the driver alone, blocks of items at a time. A block's primary key is
(recipe, split, block, task): nothing is recorded twice, and what is recorded is never scored again.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cabs_search.common.files import connect, use_write_ahead_log
from cabs_search.kinds.base import Outcome
from cabs_search.merging.recipe import Recipe
from cabs_search.metrics.base import Values
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task
from cabs_search.tasks.items import SPLITS, Items, SplitName

VERSION = 2
"""Of the record's form; a record of another is refused."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS search (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    split TEXT, task TEXT, position INTEGER, item TEXT NOT NULL, label TEXT NOT NULL,
    PRIMARY KEY (split, task, position));
CREATE TABLE IF NOT EXISTS recipes (key TEXT PRIMARY KEY, recipe TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (
    recipe TEXT, split TEXT, block INTEGER, task TEXT, scores BLOB NOT NULL, losses BLOB NOT NULL,
    predictions TEXT NOT NULL, evaluate_seconds REAL NOT NULL,
    PRIMARY KEY (recipe, split, block, task));
CREATE TABLE IF NOT EXISTS spent (what TEXT PRIMARY KEY, amount REAL NOT NULL);
"""
ADD = (
    "INSERT INTO spent VALUES (?, ?) ON CONFLICT (what) DO UPDATE SET amount = amount +"
    " excluded.amount"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A block of items scored for one recipe."""

    recipe: Recipe
    split: SplitName
    number: int
    outcomes: Mapping[str, Outcome]
    """By task."""
    evaluate_seconds: float


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One task's items of one split, as a record is tied to them."""

    task: str
    split: SplitName
    digest: str
    """See ``Items.digest``."""
    items: int


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with every item of one split scored."""

    recipe: Recipe
    tasks: Mapping[str, Outcome]
    """By task, in the study's order of items."""
    scores: Mapping[str, float]
    """The task's metric by task."""
    evaluate_seconds: float

    @property
    def score(self) -> float:
        """The mean of the tasks' metrics: what a search maximizes."""
        return float(np.mean(list(self.scores.values())))

    @property
    def losses(self) -> dict[str, float]:
        """Mean loss by task: nats, of a regression the mean squared error."""
        return {task: float(outcome.losses.mean()) for task, outcome in self.tasks.items()}

    @property
    def items(self) -> int:
        """Items scored."""
        return sum(len(outcome.scores) for outcome in self.tasks.values())


class Outcomes:
    """The record of one study."""

    def __init__(self, folder: Path, tasks: Mapping[str, Task]) -> None:
        """Open, or make, the record of ``tasks`` in ``folder``."""
        self._tasks = tasks
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "outcomes.sqlite"
        self._kept: sqlite3.Connection | None = None
        self._clock = time.monotonic()
        try:
            use_write_ahead_log(self.path)
            with self._connect() as db:
                is_new = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
                db.executescript(f"{SCHEMA} PRAGMA user_version = {VERSION};" if is_new else SCHEMA)
                version = db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: cannot be read: {error}") from error
        if version != VERSION:
            raise ValueError(
                f"{self.path}: a record must have form {VERSION}, but got {version}; start a new"
                " folder"
            )

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """One connection for all that is done within: closing the last one costs as much as a
        block's record.
        """
        with closing(connect(self.path)) as self._kept:
            self._clock = time.monotonic()
            try:
                yield
            finally:
                self._kept = None

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection and a transaction."""
        if self._kept is not None:
            with self._kept:
                yield self._kept
            return
        with closing(connect(self.path)) as db:
            with db:
                yield db

    def bind(
        self, spec: Spec, items: Mapping[SplitName, Mapping[str, Items]], weights: Mapping[str, str]
    ) -> None:
        """Tie the record to a study, or see that it is tied to this one.

        Args:
            items: the items by split and task, in order.
            weights: fingerprint of the base and of each expert.

        Raises:
            ValueError: the record is of other weights, items or blocks.

        """
        study = {f"weights of {name}": value for name, value in weights.items()}
        study |= {
            "name": spec.name,
            "search.block": str(spec.search.block),
            "dtype": spec.dtype,
            "seed": str(spec.seed),
        }
        for split, by_task in items.items():
            study |= {f"{split} items of {task}": i.digest for task, i in by_task.items()}
        for name, task in spec.tasks.items():
            study[f"tasks.{name}.kind"] = task.kind.name
            study[f"tasks.{name}.metric"] = (
                f"{task.metric} {json.dumps(task.metric_arguments, sort_keys=True)}"
            )
            study[f"tasks.{name}.max_length"] = str(task.max_length)
            study[f"tasks.{name}.expert"] = spec.expert_of(name)
        with self._connect() as db:
            known = dict(db.execute("SELECT key, value FROM study"))
            for key in sorted(known.keys() | study.keys()):
                if known and known.get(key) != study.get(key):
                    raise ValueError(
                        f"{self.path.parent.parent}: holds another study ({key} differs); choose"
                        " another --output"
                    )
            db.executemany("INSERT OR IGNORE INTO study VALUES (?, ?)", study.items())
            db.executemany(
                "INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?, ?)",
                (
                    (split, task, position, key, json.dumps(row.label))
                    for split, by_task in items.items()
                    for task, i in by_task.items()
                    for position, (key, row) in enumerate(zip(i.keys, i.rows, strict=True))
                ),
            )
            db.executemany(
                "INSERT OR IGNORE INTO search VALUES (?, ?)",
                (
                    (
                        f"{split} groups of {task}",
                        json.dumps(np.unique(i.groups, return_inverse=True)[1].tolist()),
                    )
                    for split, by_task in items.items()
                    for task, i in by_task.items()
                    if i.groups
                ),
            )

    def bound(self) -> list[Bound]:
        """What items the record is of, by task and split."""
        with self._connect() as db:
            known = dict(db.execute("SELECT key, value FROM study"))
            counts = {
                (t, s): n
                for t, s, n in db.execute("SELECT task, split, count(*) FROM items GROUP BY 1, 2")
            }
        return [
            Bound(
                task=task,
                split=split,
                digest=known[f"{split} items of {task}"],
                items=counts[task, split],
            )
            for task in self._tasks
            for split in SPLITS
        ]

    def study_id(self) -> str:
        """A name of the record's own, by which it and its search know one another."""
        with self._connect() as db:
            db.execute("INSERT OR IGNORE INTO search VALUES ('id', ?)", (uuid.uuid4().hex,))
            return str(db.execute("SELECT value FROM search WHERE key = 'id'").fetchone()[0])

    def record(self, found: Sequence[Block], spent: Mapping[str, float] | None = None) -> None:
        """Add scored blocks and what was spent, the clock's time since the last ones among it, all
        or none.

        Raises sqlite3.IntegrityError where a block is there: nothing is scored twice.
        """
        recipes = {block.recipe.key: json.dumps(block.recipe.as_dict()) for block in found}
        now = time.monotonic()
        took, self._clock = {"wall": now - self._clock, **(spent or {})}, now
        with self._connect() as db:
            db.executemany("INSERT OR IGNORE INTO recipes VALUES (?, ?)", recipes.items())
            db.executemany(
                "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        block.recipe.key,
                        block.split,
                        block.number,
                        task,
                        o.scores.astype("<f4").tobytes(),
                        o.losses.astype("<f4").tobytes(),
                        json.dumps(o.predictions.tolist()),
                        block.evaluate_seconds / len(block.outcomes),
                    )
                    for block in found
                    for task, o in block.outcomes.items()
                ),
            )
            db.executemany(ADD, took.items())

    def spent(self) -> dict[str, float]:
        """Seconds and other amounts by what they were spent on, over all runs."""
        with self._connect() as db:
            seconds = db.execute("SELECT split, sum(evaluate_seconds) FROM blocks GROUP BY split")
            return {f"evaluate {split}": s for split, s in seconds} | dict(
                db.execute("SELECT what, amount FROM spent")
            )

    def clusters(self, split: SplitName) -> dict[str, npt.NDArray[np.int64]]:
        """By task which items stand or fall together, counted from 0, [n]."""
        with self._connect() as db:
            known = dict(db.execute("SELECT key, value FROM search"))
            count = dict(
                db.execute(
                    "SELECT task, count(*) FROM items WHERE split = ? GROUP BY task", (split,)
                )
            )
        found = {task: known.get(f"{split} groups of {task}") for task in self._tasks}
        return {
            task: np.array(json.loads(text) if text else range(count[task]), dtype=np.int64)
            for task, text in found.items()
        }

    def done_blocks(self, recipe: Recipe, split: SplitName) -> set[int]:
        """The blocks of a split that are scored for a recipe."""
        query = "SELECT DISTINCT block FROM blocks WHERE recipe = ? AND split = ?"
        with self._connect() as db:
            return {row[0] for row in db.execute(query, (recipe.key, split))}

    def scored(
        self, split: SplitName, wanted: Callable[[Recipe], bool] = lambda _: True
    ) -> dict[str, Scored]:
        """Recipes of which all items of a split are scored, by key, in the order they were
        completed.
        """
        with self._connect() as db:
            recipes = {
                k: Recipe.from_dict(json.loads(r))
                for k, r in db.execute("SELECT key, recipe FROM recipes")
            }
            query = "SELECT recipe FROM blocks WHERE split = ? GROUP BY recipe ORDER BY max(rowid)"
            order = [recipes[row[0]] for row in db.execute(query, (split,))]
        labels = self.labels(split)
        found = (self.scored_one(split, recipe, labels) for recipe in order if wanted(recipe))
        return {scored.recipe.key: scored for scored in found if scored is not None}

    def scored_one(
        self,
        split: SplitName,
        recipe: Recipe,
        labels: Mapping[str, Values] | None = None,
    ) -> Scored | None:
        """One recipe's outcomes on a split; None unless all items are scored. ``labels``: where
        they are known.
        """
        query = (
            "SELECT task, scores, losses, predictions, evaluate_seconds FROM blocks "
            "WHERE recipe = ? AND split = ? ORDER BY block"
        )
        with self._connect() as db:
            rows: Sequence[tuple[str, bytes, bytes, str, float]] = list(
                db.execute(query, (recipe.key, split))
            )
        labels = self.labels(split) if labels is None else labels
        tasks, scores = {}, {}
        for task in self._tasks:
            mine = [row for row in rows if row[0] == task]
            tasks[task] = Outcome(
                np.frombuffer(b"".join(row[1] for row in mine), "<f4"),
                np.frombuffer(b"".join(row[2] for row in mine), "<f4"),
                self._tasks[task].kind.values(
                    [value for row in mine for value in json.loads(row[3])]
                ),
            )
            if len(tasks[task].scores) != len(labels[task]):
                return None
            scores[task] = self._tasks[task].measure.compute(tasks[task].predictions, labels[task])
        return Scored(recipe, tasks, scores, sum(row[4] for row in rows))

    def labels(self, split: SplitName) -> dict[str, Values]:
        """What the items' predictions are held against by task, in order."""
        query = "SELECT task, label FROM items WHERE split = ? ORDER BY task, position"
        found: dict[str, list[str]] = {}
        with self._connect() as db:
            for task, label in db.execute(query, (split,)):
                found.setdefault(task, []).append(label)
        return {
            task: self._tasks[task].kind.values(list(map(json.loads, texts)))
            for task, texts in found.items()
        }
