"""The record of a study: the results of every candidate on every item, in one SQLite file.

Everything else is computed from it. The driver alone writes it, a block of items at a time. A
block's primary key is (recipe, split, block, task): no item is recorded or scored twice.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cabs_search.common.files import connect, use_write_ahead_log
from cabs_search.kinds.base import Outcome
from cabs_search.merging.recipe import Recipe
from cabs_search.metrics.base import Values
from cabs_search.record.binding import ItemsOfSplits, group_rows, groups_key, identity, item_rows
from cabs_search.record.damage import amount_of, is_damage, reads_record
from cabs_search.record.entries import Block, Bound, Confirmation, Expected, Scored
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task
from cabs_search.tasks.items import SPLITS, SplitName

VERSION = 2
"""Version of the schema; a record of another version is refused."""
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
ADD_AMOUNT = """
INSERT INTO spent VALUES (?, ?)
ON CONFLICT (what) DO UPDATE SET amount = amount + excluded.amount
"""
BLOCKS_OF_RECIPE = """
SELECT task, scores, losses, predictions, evaluate_seconds FROM blocks
WHERE recipe = ? AND split = ? ORDER BY block
"""
RECIPES_BY_COMPLETION = """
SELECT recipe FROM blocks WHERE split = ? GROUP BY recipe ORDER BY max(rowid)
"""
DISK_ERRORS = ("SQLITE_FULL", "SQLITE_IOERR")
"""Starts of names of SQLite's errors that mean a full or broken disk."""
SEARCHING = "searching "
"""Start of the name under which the seconds of a search are spent, before its value's label."""
CONVERGED = "converged "
"""The same of the number of trials at which a search had converged."""
Floats = npt.NDArray[np.float64]
BlockRow = tuple[str, bytes, bytes, str, float]
"""A row of BLOCKS_OF_RECIPE."""


class Outcomes:
    """The record of one study."""

    def __init__(
        self, folder: Path, tasks: Mapping[str, Task], *, must_exist: bool = False
    ) -> None:
        """Open the record of ``tasks`` in ``folder``.

        Args:
            folder: the record's folder.
            tasks: the study's tasks, by name.
            must_exist: whether it is an error that there is no record; if not, it is made.

        Raises:
            ValueError: there is none, the file is damaged, or of another version.

        """
        self._tasks = tasks
        self.path = folder / "outcomes.sqlite"
        if must_exist and not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; the folder's record is lost")
        folder.mkdir(parents=True, exist_ok=True)
        self._kept: sqlite3.Connection | None = None
        self._clock = time.monotonic()
        try:
            use_write_ahead_log(self.path)
            with self.transaction() as db:
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
        """Use one connection for everything inside the context, and restart the clock."""
        # SQLite writes the log back when the last connection closes: as long as a block takes.
        with closing(connect(self.path)) as self._kept:
            self._clock = time.monotonic()
            try:
                yield
            finally:
                self._kept = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction, on the kept connection if there is one.

        Raises:
            RuntimeError: the disk does not take it.
            ValueError: the file is damaged.

        """
        try:
            if self._kept is not None:
                with self._kept:
                    yield self._kept
                return
            with closing(connect(self.path)) as db, db:
                yield db
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            if not getattr(error, "sqlite_errorname", "").startswith(DISK_ERRORS):
                raise ValueError(f"{self.path}: is damaged: {error}") from error
            raise RuntimeError(
                f"{self.path}: cannot be written: {error}; once it can, the same command goes on"
            ) from error

    def bind(self, spec: Spec, items: ItemsOfSplits, weights: Mapping[str, str]) -> None:
        """Tie a new record to a study, or check that it is tied to this one.

        Args:
            spec: the study.
            items: by split and task.
            weights: fingerprint of the base and of each expert, by name.

        Raises:
            ValueError: the record is of other weights, items or blocks.

        """
        study = identity(spec, items, weights)
        with self.transaction() as db:
            known = dict(db.execute("SELECT key, value FROM study"))
            for key in sorted(known.keys() | study.keys()):
                if known and known.get(key) != study.get(key):
                    raise ValueError(
                        f"{self.path.parent.parent}: holds another study ({key} differs); choose"
                        " another --output"
                    )
            db.executemany("INSERT OR IGNORE INTO study VALUES (?, ?)", study.items())
            db.executemany("INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?, ?)", item_rows(items))
            db.executemany("INSERT OR IGNORE INTO search VALUES (?, ?)", group_rows(items))

    @reads_record
    def bound(self) -> list[Bound]:
        """Return the items that the record is tied to, by task and split."""
        with self.transaction() as db:
            study = dict(db.execute("SELECT key, value FROM study"))
            rows = db.execute("SELECT task, split, count(*) FROM items GROUP BY task, split")
            counts = {(task, split): count for task, split, count in rows}
        return [
            Bound(
                task=task,
                split=split,
                digest=study[f"{split} items of {task}"],
                items=counts[task, split],
            )
            for task in self._tasks
            for split in SPLITS
        ]

    def study_id(self) -> str:
        """Return the record's random id, which the Optuna study and the MLflow runs refer to."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO search VALUES ('id', ?)", (uuid.uuid4().hex,))
            return str(db.execute("SELECT value FROM search WHERE key = 'id'").fetchone()[0])

    def expect(self, expected: Expected) -> None:
        """Keep what a candidate is expected to score, before it is scored."""
        self._keep(f"expected {expected.recipe.key}", expected)

    def recommend(self, expected: Expected, value: str = "") -> None:
        """Keep which candidate a search recommends; ``value``: of a comparison, which search."""
        self._keep(f"recommended {value}", expected)

    def conclude(self, confirmation: Confirmation | None) -> None:
        """Keep which rows ended early; None: all rows are scored on all items."""
        if confirmation is None:
            with self.transaction() as db:
                db.execute("DELETE FROM search WHERE key = 'confirmation'")
        else:
            kept = [sorted(confirmation.ended), sorted(confirmation.tied)]
            self.keep_text("confirmation", json.dumps(kept))

    @reads_record
    def confirmation(self) -> Confirmation | None:
        """Return which rows ended early; None where all rows are scored on all items."""
        kept = self.kept_text("confirmation")
        if kept is None:
            return None
        ended, tied = json.loads(kept)
        return Confirmation(ended=frozenset(ended), tied=frozenset(tied))

    def _keep(self, key: str, expected: Expected) -> None:
        values = [expected.recipe.as_dict(), expected.mean, expected.deviation]
        self.keep_text(key, json.dumps(values))

    def keep_text(self, key: str, text: str) -> None:
        """Keep a text of the search under a key."""
        if self.kept_text(key) != text:  # a run that finds nothing new writes nothing
            with self.transaction() as db:
                db.execute("INSERT OR REPLACE INTO search VALUES (?, ?)", (key, text))

    def kept_text(self, key: str) -> str | None:
        """Return a text that was kept; None if there is none."""
        with self.transaction() as db:
            found = db.execute("SELECT value FROM search WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def recommended(self) -> Expected | None:
        """Return what a single study recommends; None if it recommends nothing."""
        return next(iter(self._kept_as("recommended ")), None)

    def expected(self) -> list[Expected]:
        """Return what candidates were expected to score, in the order of their proposals."""
        return self._kept_as("expected %")

    @reads_record
    def _kept_as(self, pattern: str) -> list[Expected]:
        query = "SELECT value FROM search WHERE key LIKE ? ORDER BY rowid"
        with self.transaction() as db:
            kept = [json.loads(text) for (text,) in db.execute(query, (pattern,))]
        return [
            Expected(recipe=Recipe.from_dict(recipe), mean=mean, deviation=deviation)
            for recipe, mean, deviation in kept
        ]

    def record(self, blocks: Sequence[Block], spent: Mapping[str, float] | None = None) -> None:
        """Add scored blocks and what was spent on them, in one transaction.

        Args:
            blocks: the blocks.
            spent: amounts by what they were spent on, beside the seconds since the last call.

        Raises:
            sqlite3.IntegrityError: a block is recorded already.

        """
        recipes = {block.recipe.key: json.dumps(block.recipe.as_dict()) for block in blocks}
        rows = [row for block in blocks for row in _block_rows(block)]
        now = time.monotonic()
        amounts, self._clock = {"wall": now - self._clock, **(spent or {})}, now
        with self.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO recipes VALUES (?, ?)", recipes.items())
            db.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            db.executemany(ADD_AMOUNT, amounts.items())

    @reads_record
    def spent(self) -> dict[str, float]:
        """Return seconds and other amounts of all runs, by what they were spent on."""
        with self.transaction() as db:
            seconds = db.execute("SELECT split, sum(evaluate_seconds) FROM blocks GROUP BY split")
            amounts = {f"evaluate {split}": total for split, total in seconds}
            amounts |= dict(db.execute("SELECT what, amount FROM spent"))
        known = {what: amount_of(amount) for what, amount in amounts.items()}
        converged = sum(known[what] > 0 for what in known if what.startswith(CONVERGED))
        of_all = {k: v for k, v in known.items() if not k.startswith((SEARCHING, CONVERGED))}
        return of_all | ({"converged": converged} if converged else {})

    @reads_record
    def amount(self, what: str) -> float:
        """Return one amount of all runs, such as ``SEARCHING`` and a study's id."""
        query = "SELECT amount FROM spent WHERE what = ?"
        with self.transaction() as db:
            stored = db.execute(query, (what,)).fetchone()
        return amount_of(stored[0]) if stored else 0.0

    @reads_record
    def clusters(self, split: SplitName) -> dict[str, npt.NDArray[np.int64]]:
        """Return the number of each item's group by task, counted from 0, [items]."""
        query = "SELECT task, count(*) FROM items WHERE split = ? GROUP BY task"
        with self.transaction() as db:
            known = dict(db.execute("SELECT key, value FROM search"))
            counts = dict(db.execute(query, (split,)))
        stored = {task: known.get(groups_key(split, task)) for task in self._tasks}
        found = {}
        for task, text in stored.items():
            found[task] = np.array(json.loads(text) if text else range(counts[task]), np.int64)
            if (
                found[task].shape != (counts[task],)
                or not 0 <= found[task].min() <= found[task].max() < counts[task]
            ):
                raise ValueError(
                    f"the groups of {task} must be a number below {counts[task]} an item"
                )
        return found

    @reads_record
    def done_blocks(self, recipe: Recipe, split: SplitName) -> set[int]:
        """Return the numbers of a split's blocks that are scored for a recipe."""
        query = "SELECT DISTINCT block FROM blocks WHERE recipe = ? AND split = ?"
        with self.transaction() as db:
            return {number for (number,) in db.execute(query, (recipe.key, split))}

    @reads_record
    def block_results(
        self, recipe: Recipe, split: SplitName
    ) -> dict[int, dict[str, tuple[Floats, Floats]]]:
        """Return the items' scores and losses of each scored block, by its number and by task."""
        query = (
            "SELECT block, task, scores, losses FROM blocks WHERE recipe = ? AND split = ?"
            " ORDER BY task"
        )
        by_block: dict[int, dict[str, tuple[Floats, Floats]]] = {}
        with self.transaction() as db:
            for number, task, *stored in db.execute(query, (recipe.key, split)):
                scores, losses = (np.frombuffer(part, "<f4").astype(float) for part in stored)
                by_block.setdefault(number, {})[task] = scores, losses
        return by_block

    @reads_record
    def unfinished(self, split: SplitName) -> tuple[int, int]:
        """Return how many recipes have some items of a split scored but not all, and the items."""
        query = "SELECT recipe, sum(length(scores)) / 4 FROM blocks WHERE split = ? GROUP BY recipe"
        with self.transaction() as db:
            count = db.execute("SELECT count(*) FROM items WHERE split = ?", (split,)).fetchone()[0]
            parts = [n for _, n in db.execute(query, (split,)) if n < count]
        return len(parts), sum(parts)

    @reads_record
    def scored(
        self,
        split: SplitName,
        wanted: Callable[[Recipe], bool] = lambda _: True,
        ended: Collection[str] = (),
    ) -> dict[str, Scored]:
        """Return the wanted recipes with every item of a split scored, by key.

        They come in the order in which they were completed.

        Args:
            split: the split.
            wanted: tells which recipes to return.
            ended: keys of recipes that are returned with the items they have.

        """
        with self.transaction() as db:
            stored = dict(db.execute("SELECT key, recipe FROM recipes"))
            keys = [key for (key,) in db.execute(RECIPES_BY_COMPLETION, (split,))]
        recipes = [Recipe.from_dict(json.loads(stored[key])) for key in keys]
        labels = self.labels(split)
        chosen = filter(wanted, recipes)
        completed = {
            recipe.key: self.scored_one(split, recipe, labels, needs_all=recipe.key not in ended)
            for recipe in chosen
        }
        return {key: scored for key, scored in completed.items() if scored is not None}

    @reads_record
    def scored_one(
        self,
        split: SplitName,
        recipe: Recipe,
        labels: Mapping[str, Values] | None = None,
        *,
        needs_all: bool = True,
    ) -> Scored | None:
        """Return one recipe's results on a split, or None unless all items are scored.

        Args:
            split: the split.
            recipe: the recipe.
            labels: those of the split, if the caller has them already.
            needs_all: False for a recipe of which the first items are enough.

        """
        labels = self.labels(split) if labels is None else labels
        with self.transaction() as db:
            rows: list[BlockRow] = list(db.execute(BLOCKS_OF_RECIPE, (recipe.key, split)))
        tasks, scores = {}, {}
        for name, task in self._tasks.items():
            tasks[name] = _outcome(task, [row for row in rows if row[0] == name])
            count = len(tasks[name].scores)
            if not count or (needs_all and count != len(labels[name])):
                return None
            found = tasks[name]
            scores[name] = task.measure.of(found.scores, found.predictions, labels[name][:count])
        return Scored(recipe, tasks, scores, sum(row[4] for row in rows))

    @reads_record
    def labels(self, split: SplitName) -> dict[str, Values]:
        """Return the items' labels by task, in the study's order."""
        query = "SELECT task, label FROM items WHERE split = ? ORDER BY task, position"
        stored: dict[str, list[Any]] = {}
        with self.transaction() as db:
            for task, label in db.execute(query, (split,)):
                stored.setdefault(task, []).append(json.loads(label))
        return {task: self._tasks[task].kind.values(labels) for task, labels in stored.items()}


def _block_rows(block: Block) -> Iterator[tuple[str, str, int, str, bytes, bytes, str, float]]:
    seconds = block.evaluate_seconds / len(block.outcomes)
    for task, outcome in block.outcomes.items():
        scores, losses = (a.astype("<f4").tobytes() for a in (outcome.scores, outcome.losses))
        predictions = json.dumps(outcome.predictions.tolist())
        key = (block.recipe.key, block.split, block.number, task)
        yield *key, scores, losses, predictions, seconds


def _outcome(task: Task, rows: Iterable[BlockRow]) -> Outcome:
    """Join one task's blocks in their order."""
    scores, losses, predictions = b"", b"", []
    for _, block_scores, block_losses, block_predictions, _ in rows:
        scores += block_scores
        losses += block_losses
        predictions += json.loads(block_predictions)
    if not len(scores) == len(losses) == 4 * len(predictions):
        raise ValueError("a block must have a score, a loss and a prediction of each item")
    return Outcome(
        np.frombuffer(scores, "<f4"), np.frombuffer(losses, "<f4"), task.kind.values(predictions)
    )
