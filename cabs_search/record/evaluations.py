"""Record of refinements: losses, scores and gradients of λ on blocks of the search items.

It is kept apart from candidates: a recipe on an optimizer's path is none.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cabs_search.merging.recipe import Recipe
from cabs_search.record.damage import reads_record
from cabs_search.record.outcomes import ADD_AMOUNT, Outcomes

SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    recipe TEXT, block INTEGER, task TEXT, losses BLOB NOT NULL, scores BLOB NOT NULL,
    predictions TEXT NOT NULL, gradients BLOB NOT NULL, temperature REAL,
    PRIMARY KEY (recipe, block, task, temperature));
"""
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
    predictions: Sequence[Any]
    """[items], as JSON holds them."""
    gradients: npt.NDArray[np.float32] | None
    """Gradient of the sum of the losses in λ of an expert on a tensor, flat, [experts · tensors];
    None: not known.
    """
    temperature: float = 1.0
    """Number that logits were divided by; ``BY_TEMPERATURE``; or -1, and losses are entropies."""
    by_temperature: npt.NDArray[np.float32] | None = None
    """Sums of the losses, [temperatures], at ``BY_TEMPERATURE``; nothing else is known there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Results of a recipe on one block."""

    recipe: Recipe
    block: int
    items: int
    """Cost, in forward passes of an item."""
    tasks: Mapping[str, TaskValues]
    """Results by task."""


class Evaluations:
    """Refinements in the file of a study's record."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes, self.path = outcomes, outcomes.path
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
                        json.dumps(found.predictions),
                        _numbers(found),
                        found.temperature,
                    )
                    for task, found in one.tasks.items()
                ]
                db.executemany("INSERT OR REPLACE INTO evaluations VALUES (?,?,?,?,?,?,?,?)", rows)
            db.executemany(ADD_AMOUNT, spent.items())

    @reads_record
    def read(self, recipe: Recipe) -> list[tuple[int, str, TaskValues]]:
        """Return what is known of a recipe: block, task and results."""
        query = (
            "SELECT block, task, predictions, temperature, losses, scores, gradients"
            " FROM evaluations WHERE recipe = ?"
        )
        found = []
        with self._outcomes.transaction() as db:
            for block, task, text, temperature, *stored in db.execute(query, (recipe.key,)):
                losses, scores, numbers = (np.frombuffer(part, "<f4") for part in stored)
                are_gradients = temperature != BY_TEMPERATURE and len(numbers) > 0
                values = TaskValues(
                    losses=losses,
                    scores=scores,
                    predictions=json.loads(text),
                    gradients=numbers if are_gradients else None,
                    temperature=temperature,
                    by_temperature=numbers if temperature == BY_TEMPERATURE else None,
                )
                found.append((block, task, values))
        return found


def _numbers(found: TaskValues) -> bytes:
    """Return what the column ``gradients`` holds: those, or at ``BY_TEMPERATURE`` the sums."""
    numbers = found.gradients if found.by_temperature is None else found.by_temperature
    return b"" if numbers is None else numbers.tobytes()


class Notes:
    """Notes of a search on its refinement; ``value``: of a comparison, which search."""

    def __init__(self, outcomes: Outcomes, value: str = "") -> None:
        self._outcomes, self._value, self.path = outcomes, value, outcomes.path

    @reads_record
    def _read(self, what: str) -> Any:
        text = self._outcomes.kept_text(f"{what} {self._value}")
        return json.loads(text) if text else None

    def _keep(self, what: str, plain: Any) -> None:
        self._outcomes.keep_text(f"{what} {self._value}", json.dumps(plain))

    @property
    @reads_record
    def start(self) -> Recipe | None:
        """Candidate that is being refined, or was at last."""
        plain = self._read("refine start")
        return Recipe.from_dict(plain["recipe"]) if plain else None

    @property
    @reads_record
    def candidates(self) -> int:
        """Number of candidates that ``start`` was chosen from; 0 if nothing was refined yet."""
        plain = self._read("refine start")
        return int(plain["candidates"]) if plain else 0

    def begin(self, start: Recipe, candidates: int) -> None:
        """Keep what is refined from now on, and the number of candidates it was chosen from."""
        self._keep("refine start", {"recipe": start.as_dict(), "candidates": candidates})

    @property
    def found(self) -> dict[str, Any] | None:
        """Findings of the last refinement that has ended; None if none has."""
        found: dict[str, Any] | None = self._read("refinement")
        return found

    def end(self, found: Mapping[str, Any], refined: Collection[str]) -> None:
        """Keep findings, and the keys of all recipes that were ever refined."""
        self._keep("refined", sorted(refined))
        self._keep("refinement", found)

    @property
    def refined(self) -> set[str]:
        """Keys of all recipes that were ever refined: candidates, but none of the search's."""
        return set(self._read("refined") or ())
