"""Results of a comparison and the sentences that say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cabs_search.common.formats import finite, number
from cabs_search.results.as_reported import Reported
from cabs_search.results.matrix import Matrix
from cabs_search.results.panel import Contrast
from cabs_search.results.rows import BASELINE, SIGNIFICANT, Row
from cabs_search.results.spent import Cost
from cabs_search.results.tie_set import TieSet


@dataclass(frozen=True, kw_only=True)
class ValueRow:
    """Results of one value."""

    label: str
    values: tuple[str, ...]
    """Values of the axes."""
    row: Row | None
    """Confirmed candidate with the best search score."""
    shared: Row | None
    """Best one with one λ for all experts."""
    candidates: int
    """Candidates with every search item scored."""
    failure: str | None
    """Reason why there is no row."""
    is_reference: bool = False
    """True if it is no value of an axis, but what all are compared with."""

    @property
    def against(self) -> Contrast | None:
        """Contrast with the best shared-λ Task Arithmetic; None if it is that one itself."""
        return self.row.against.get(BASELINE) if self.row else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results of a comparison."""

    name: str
    over: tuple[str, ...]
    items: Mapping[str, Mapping[str, int]]
    """Number of items by split and task."""
    alone: tuple[Row, ...]
    """Base, experts and ideal."""
    reference: Row | None
    """Best shared-λ Task Arithmetic."""
    lines: tuple[ValueRow, ...]
    matrix: Matrix | None
    """Best candidate of every value against every other's; values that are one study count once."""
    tie_set: TieSet | None
    """Values that cannot be told from the best."""
    as_reported: tuple[Reported, ...]
    """The top of each value's search as papers report it."""
    spent: Cost
    notes: tuple[str, ...]
    objective: str = ""
    """Sentence that says what the score is; empty: the mean of the tasks' metrics."""

    @property
    def score_name(self) -> str:
        """Word for the score."""
        return "score" if self.objective else "average"

    @property
    def headline(self) -> str:
        """Finding in one sentence."""
        if self.tie_set is None:
            return "Nothing can be compared yet."
        what, count, best = plural(self.over), self.tie_set.of, self.tie_set.labels[0]
        if self._is_ahead(best):
            return f"{best} beats all other {what}."
        largest = self._largest_difference
        if not self._told_from_best and largest is not None:
            return (
                f"No two of the {count} {what} differ by more than {number(100 * largest, 1)}"
                " points; none is ahead."
            )
        return (
            f"{best} is the highest of {count} {what}; {len(self.tie_set.labels)} of them may be"
            " the best."
        )

    @property
    def finding(self) -> str:
        """Size of the axis's effect in words."""
        if self.tie_set is None:
            return ""
        if self._told_from_best:
            told = ", ".join(self._told_from_best)
            return f"{self.tie_set.text} Told from the best: {told}."
        if self._largest_difference is None:
            return self.tie_set.text
        return (
            f"{self.tie_set.text} No two of the {self.tie_set.of} {plural(self.over)} differ by"
            f" more than {number(100 * self._largest_difference, 1)} points (95 %, all pairs"
            " together)."
        )

    @property
    def verdict(self) -> str:
        """Highest value, and the values told from the best shared-λ Task Arithmetic."""
        rows = {line.label: line.row for line in self.lines if line.row is not None}
        if not rows:
            return "No row is confirmed yet."
        top = max(rows, key=lambda label: rows[label].score)
        text = f"Highest {self.score_name}: {top}, {number(100 * rows[top].score, 2)}."
        if self.reference is None:
            return text
        # values with one best recipe count once, under the first one's label
        tested = {
            row.key: (label, row.against[BASELINE])
            for label, row in reversed(rows.items())
            if BASELINE in row.against
        }
        told = [(k, c) for k, c in reversed(tested.values()) if c.p_holm < SIGNIFICANT]
        above = [label for label, contrast in told if contrast.estimate > 0]
        below = [label for label, contrast in told if contrast.estimate < 0]
        return (
            f"{text} Above the best shared-λ Task Arithmetic (Holm's correction):"
            f" {', '.join(above) or 'none'}; below: {', '.join(below) or 'none'};"
            f" {len(tested) - len(told)} of {len(tested)} cannot be told from it."
        )

    @property
    def _told_from_best(self) -> list[str]:
        values = [line for line in self.lines if not line.is_reference]
        return [line.label for line in values if line.row and not line.row.tied]

    @property
    def _largest_difference(self) -> float | None:
        """Largest difference of two values that is inside an interval."""
        if self.matrix is None:
            return None
        return max(abs(end) for row in (*self.matrix.low, *self.matrix.high) for end in row)

    def _is_ahead(self, label: str) -> bool:
        """Tell whether a value is told from every other one, by the matrix's tests."""
        if self.matrix is None:
            return False
        place = self.matrix.labels.index(label)
        others = [p for other, p in enumerate(self.matrix.p_holm[place]) if other != place]
        return all(p < SIGNIFICANT for p in others) and min(self.matrix.estimate[place]) >= 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; labels stand for the axes' values."""
        values: dict[str, Any] = finite(asdict(self))
        for line in values["lines"]:
            del line["values"]
        return values


def plural(over: Sequence[str]) -> str:
    """Return the word for several values of the axes."""
    names = {"method": "methods", "order": "orders", "nm": "n:m", "density": "densities"}
    return names[over[0].partition("=")[0]] if len(over) == 1 else "rows"
