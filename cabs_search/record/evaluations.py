"""Record of refinements: losses, scores and gradients of λ on blocks of the search items.

It is kept apart from candidates: a recipe on an optimizer's path is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import ADD_AMOUNT, Outcomes

SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    recipe TEXT, block INTEGER, task TEXT, losses BLOB NOT NULL, scores BLOB NOT NULL,
    gradients BLOB NOT NULL, temperature REAL,
    PRIMARY KEY (recipe, block, task, temperature));
"""
NOTE = "refinement "
"""Start of the key of what a search found by refining, before its value's label."""
BY_TEMPERATURE = 0.0
"""Temperature of sums of losses at several temperatures."""
BACKWARD = 2
"""Cost of a backward pass, in forward passes of the same items."""


class TaskValues(NamedTuple):
    """Results on one task's items of one block."""

    losses: npt.NDArray[np.float32]
    """[items]."""
    scores: npt.NDArray[np.float32]
    """[items]."""
    gradients: npt.NDArray[np.float32] | None
    """Gradient of the sum of the losses in λ of an expert on a tensor, flat, [experts · tensors];
    None: not known. At ``BY_TEMPERATURE`` sums of the losses, [temperatures].
    """
    temperature: float
    """Number that logits were divided by, or ``BY_TEMPERATURE``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Results of a recipe on one block."""

    recipe: Recipe
    block: int
    items: int
    """Cost, in forward passes of an item."""
    tasks: Mapping[str, TaskValues]
    """By task."""


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
                rows = [
                    (
                        *(one.recipe.key, one.block, task),
                        *(found.losses.tobytes(), found.scores.tobytes()),
                        b"" if found.gradients is None else found.gradients.tobytes(),
                        found.temperature,
                    )
                    for task, found in one.tasks.items()
                ]
                db.executemany("INSERT OR REPLACE INTO evaluations VALUES (?,?,?,?,?,?,?)", rows)
            db.executemany(ADD_AMOUNT, spent.items())

    def read(self, recipe: Recipe) -> list[tuple[int, str, TaskValues]]:
        """Return what is known of a recipe: block, task and results."""
        query = (
            "SELECT block, task, losses, scores, gradients, temperature FROM evaluations"
            " WHERE recipe = ?"
        )
        found = []
        with self._outcomes.transaction() as db:
            for block, task, *stored, temperature in db.execute(query, (recipe.key,)):
                losses, scores, gradients = (np.frombuffer(part, "<f4") for part in stored)
                known = gradients if len(gradients) else None
                found.append((block, task, TaskValues(losses, scores, known, temperature)))
        return found

    def keep(self, value: str, note: Mapping[str, Any]) -> None:
        """Keep what a search found by refining; ``value``: of a comparison, which search."""
        self._outcomes.keep_text(NOTE + value, json.dumps(note))


def read_note(outcomes: Outcomes, value: str = "") -> dict[str, Any] | None:
    """Return what a search found by refining; None if nothing was kept."""
    text = outcomes.kept_text(NOTE + value)
    return json.loads(text) if text else None
