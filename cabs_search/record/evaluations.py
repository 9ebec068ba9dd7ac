"""Record of refinements: losses, scores and gradients of λ on blocks of the search items.

It is kept apart from candidates: a recipe on an optimizer's path is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cabs_search.kinds.base import Outcome
from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import ADD_AMOUNT, Outcomes

SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    recipe TEXT, block INTEGER, task TEXT, losses BLOB NOT NULL, scores BLOB NOT NULL,
    gradients BLOB NOT NULL, width REAL, PRIMARY KEY (recipe, block, task));
"""
NOTE = "refinement "
"""Start of the key of what a search found by refining, before its value's label."""
BACKWARD = 2
"""Cost of a backward pass, in forward passes of the same items."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Results of a recipe on one block."""

    recipe: Recipe
    block: int
    outcomes: Mapping[str, Outcome]
    """By task."""
    gradients: Mapping[str, npt.NDArray[np.float32]] | None
    """Gradient of the sum of a task's losses in λ of an expert on a tensor, by task,
    [experts, tensors]; None: it was not asked for.
    """
    widths: Mapping[str, float] = field(default_factory=dict)
    """Tasks of which a smooth form of the score was differentiated, with its width."""

    @property
    def items(self) -> int:
        """Cost, in forward passes of an item."""
        forwards = sum(len(outcome.scores) for outcome in self.outcomes.values())
        return forwards * (1 if self.gradients is None else 1 + BACKWARD)


class TaskValues(NamedTuple):
    """Results on one task's items of one block."""

    losses: npt.NDArray[np.float32]
    """[items]."""
    scores: npt.NDArray[np.float32]
    """[items]."""
    gradients: npt.NDArray[np.float32] | None
    """Flat, [experts · tensors]; None: not known."""
    width: float | None
    """Width of what was differentiated; None: the loss was, or nothing."""


class Evaluations:
    """Refinements in the file of a study's record."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        with outcomes.transaction() as db:
            db.execute(SCHEMA)

    def add(self, evaluations: Sequence[Evaluation], seconds: float) -> None:
        """Add evaluations and the seconds that they took, in one transaction."""
        spent = {"refine": seconds, "refine items": float(sum(one.items for one in evaluations))}
        with self._outcomes.transaction() as db:
            for one in evaluations:
                for task, outcome in one.outcomes.items():
                    gradients = b"" if one.gradients is None else one.gradients[task].tobytes()
                    row = (one.recipe.key, one.block, task)
                    values = (outcome.losses.tobytes(), outcome.scores.tobytes(), gradients)
                    db.execute(
                        "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (*row, *values, one.widths.get(task)),
                    )
            db.executemany(ADD_AMOUNT, spent.items())

    def read(self, recipe: Recipe) -> dict[int, dict[str, TaskValues]]:
        """Return what is known of a recipe, by block and task."""
        query = (
            "SELECT block, task, losses, scores, gradients, width FROM evaluations WHERE recipe = ?"
        )
        found: dict[int, dict[str, TaskValues]] = {}
        with self._outcomes.transaction() as db:
            for block, task, *stored, width in db.execute(query, (recipe.key,)):
                losses, scores, gradients = (np.frombuffer(part, "<f4") for part in stored)
                values = TaskValues(losses, scores, gradients if len(gradients) else None, width)
                found.setdefault(block, {})[task] = values
        return found

    def keep(self, value: str, note: Mapping[str, Any]) -> None:
        """Keep what a search found by refining; ``value``: of a comparison, which search."""
        self._outcomes.keep_text(NOTE + value, json.dumps(note))


def read_note(outcomes: Outcomes, value: str = "") -> dict[str, Any] | None:
    """Return what a search found by refining; None if nothing was kept."""
    text = outcomes.kept_text(NOTE + value)
    return json.loads(text) if text else None
