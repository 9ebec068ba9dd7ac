"""Entries of a study's record: scored blocks and candidates, predictions, decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cabs_search.kinds.base import Outcome
from cabs_search.merging.recipe import Recipe
from cabs_search.stats.aggregate import MEAN, Aggregate
from cabs_search.tasks.items import SplitName


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A block of items scored for one recipe."""

    recipe: Recipe
    split: SplitName
    number: int
    outcomes: Mapping[str, Outcome]
    """Outcomes by task."""
    evaluate_seconds: float


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The items of one task and split that a record is tied to."""

    task: str
    split: SplitName
    digest: str
    """See ``Items.digest``."""
    items: int
    """Number of items."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with every item of one split scored, or those that it had when it ended."""

    recipe: Recipe
    tasks: Mapping[str, Outcome]
    """Outcomes by task, in the study's order of items."""
    scores: Mapping[str, float]
    """Metric by task."""
    evaluate_seconds: float
    aggregate: Aggregate = MEAN
    """Rule that makes one score of the tasks' metrics."""
    values: tuple[float, ...] = ()
    """Numbers that the search maximizes, if that is something else than the score."""

    @property
    def score(self) -> float:
        """One score for all tasks."""
        return float(self.aggregate(self.scores))

    @property
    def objectives(self) -> tuple[float, ...]:
        """Numbers that the search maximizes."""
        return self.values or (self.score,)

    @property
    def rank(self) -> float:
        """Number by which candidates are ranked: the objective; if there are several, the score."""
        return self.objectives[0] if len(self.objectives) == 1 else self.score

    @property
    def losses(self) -> dict[str, float]:
        """Mean loss by task: nats, or the mean squared error of a regression."""
        return {task: float(outcome.losses.mean()) for task, outcome in self.tasks.items()}

    @property
    def items(self) -> int:
        """Number of items scored."""
        return sum(len(outcome.scores) for outcome in self.tasks.values())


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Prediction of a candidate's score on the search split."""

    recipe: Recipe
    mean: float
    deviation: float
    """Standard deviation of the score about it."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Decisions on rows that were looked at while they were confirmed, by recipe's key."""

    ended: frozenset[str]
    """Rows that ended before all their items were scored."""
    tied: frozenset[str]
    """Candidates that cannot be told from the best."""
