"""A comparison's rows, from what was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cabs_search.common.formats import finite
from cabs_search.record.comparison_file import stored_comparison
from cabs_search.record.folder import StudyFolder
from cabs_search.record.outcomes import Outcomes, Scored
from cabs_search.results.as_reported import Reported, as_reported
from cabs_search.results.leaderboard import BASELINE, SIGNIFICANT, Entry, Row, lines_alone, rows_of
from cabs_search.results.panel import Contrast, Matrix, matrix
from cabs_search.results.scores import RecordScores
from cabs_search.results.spent import Cost, cost_of
from cabs_search.results.tie_set import TieSet, tie_set
from cabs_search.search.axes import REFERENCE, Value, axis_values
from cabs_search.search.candidates import candidate_of, ranked
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec

TOP = 20
"""Candidates of each value that are reported as papers do."""
NOT_YET = "no candidate has been confirmed yet; run the same command to go on"


@dataclass(frozen=True, kw_only=True)
class ValueRow:
    """What one value came to."""

    label: str
    row: Row | None
    """The candidate of it with the best search score; None where there is none."""
    shared: Row | None
    """The best with one λ for all experts; None where there is none."""
    candidates: int
    """Scored on the search split."""
    failure: str | None
    """Why there is no row."""
    is_reference: bool = False
    """Whether it is no value of an axis, but what all are held against."""

    @property
    def against(self) -> Contrast | None:
        """Its row against the best shared-λ Task Arithmetic, on the confirm split; None where it is
        that one.
        """
        return self.row.against.get(BASELINE) if self.row else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison found."""

    name: str
    over: tuple[str, ...]
    items: Mapping[str, Mapping[str, int]]
    """Items by split and task."""
    alone: tuple[Row, ...]
    """Base, experts and ideal."""
    reference: Row | None
    """The best shared-λ Task Arithmetic."""
    lines: tuple[ValueRow, ...]
    matrix: Matrix | None
    """Every value's best candidate against every other's; values that are the same study stand
    once.
    """
    tie_set: TieSet | None
    """The values that cannot be told from the best."""
    as_reported: tuple[Reported, ...]
    """The top of each value's search as papers report it."""
    spent: Cost
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The finding in one sentence."""
        if self.tie_set is None:
            return "Nothing can be compared yet."
        what, count, best = _plural(self.over), self.tie_set.of, self.tie_set.labels[0]
        if self._is_ahead(best):
            return f"{best} beats all other {what}."
        if not self._outside and self._most is not None:
            return (
                f"No two of the {count} {what} differ by more than {100 * self._most:.1f} points;"
                " none is ahead."
            )
        return (
            f"{best} is the highest of {count} {what}; {len(self.tie_set.labels)} of them may be"
            " the best."
        )

    @property
    def finding(self) -> str:
        """Whether the axis makes a difference, with a number."""
        if self.tie_set is None:
            return ""
        if self._outside:
            return f"{self.tie_set.text} Told from the best: {', '.join(self._outside)}."
        if self._most is None:
            return self.tie_set.text
        return (
            f"{self.tie_set.text} No two of the {self.tie_set.of} {_plural(self.over)} differ by"
            f" more than {100 * self._most:.1f} points (95 %, all pairs together)."
        )

    @property
    def _outside(self) -> list[str]:
        """Values that are not in the tie set."""
        return [
            line.label
            for line in self.lines
            if line.row and not line.row.tied and not line.is_reference
        ]

    @property
    def _most(self) -> float | None:
        """The largest difference of two values that their intervals leave possible."""
        if self.matrix is None:
            return None
        return max(
            abs(end) for ends in (self.matrix.low, self.matrix.high) for row in ends for end in row
        )

    def _is_ahead(self, label: str) -> bool:
        """Whether a value is told from every other one, by the tests that the matrix has."""
        if self.matrix is None:
            return False
        place = self.matrix.labels.index(label)
        others = [p for other, p in enumerate(self.matrix.p_holm[place]) if other != place]
        return all(p < SIGNIFICANT for p in others) and min(self.matrix.estimate[place]) >= 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = finite(asdict(self))
        return values


def read_comparison(folder: Path) -> Comparison:
    """The comparison that a folder holds, from what was recorded. Raises ValueError where it holds
    none.
    """
    plain = stored_comparison(folder)
    spec = parse(plain["spec"], str(StudyFolder(folder).comparison), locations=False)
    outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks)
    return build_comparison(
        spec, plain["over"], RecordScores.read(spec, outcomes), plain["failures"], plain["notes"]
    )


def best_of(folder: Path, label: str) -> str:
    """The key of a row's best recipe. Raises ValueError where there is no such row, or nothing in
    it.
    """
    found = {line.label: line for line in read_comparison(folder).lines}
    line = found.get(label)
    if line is None or line.row is None or line.row.key is None:
        there = ", ".join(name for name, each in found.items() if each.row is not None)
        raise ValueError(
            f"--trial: a row of the comparison must be named ({there}), but got {label}"
        )
    return line.row.key


def build_comparison(
    spec: Spec,
    over: Sequence[str],
    scores: RecordScores,
    failures: Mapping[str, str],
    notes: Sequence[str],
) -> Comparison:
    """Compare what was recorded."""
    rows = axis_values(spec, over)
    own = {v.label: _own(v.spec, scores) for v in rows}
    best = {label: _best(scores, found) for label, found in own.items()}
    shared = {label: _best(scores, found, shared=True) for label, found in own.items()}
    reference = _best(
        scores,
        (s for s in scores.searched.values() if s.recipe.method.name == REFERENCE),
        shared=True,
    )
    alone = lines_alone(spec, scores.confirmed)
    merged = {
        s.recipe.key: _line_of(s, scores)
        for s in (reference, *best.values(), *shared.values())
        if s
    }
    panel = scores.panel(spec, {line.key: line.scored for line in (*alone, *merged.values())})
    is_value = {v.label: v.same_as is None and not v.is_reference for v in rows}
    once = {label: s.recipe.key for label, s in best.items() if s is not None and is_value[label]}
    ties = (
        tie_set(panel, list(dict.fromkeys(once.values())), _plural(over)) if len(once) > 1 else None
    )
    tied = ties.labels if ties else ()
    references = {BASELINE: reference.recipe.key} if reference else {}
    together = {s.recipe.key: merged[s.recipe.key] for s in (reference, *best.values()) if s}
    found = {row.key: row for row in rows_of([*together.values()], panel, tied, references)}
    extra = [line for key, line in merged.items() if key not in together]
    found |= {row.key: row for row in rows_of(extra, panel, tied, {})}
    lines = tuple(
        ValueRow(
            label=v.label,
            row=found[s.recipe.key] if (s := best[v.label]) else None,
            shared=found[s.recipe.key] if (s := shared[v.label]) else None,
            candidates=len(own[v.label]),
            failure=failures.get(v.same_as or v.label, None if best[v.label] else NOT_YET),
            is_reference=v.is_reference,
        )
        for v in rows
    )
    notes = [*notes, *_ends(rows, own)]
    notes += [
        f"{line.label}: {line.failure}; its row is of before."
        for line in lines
        if line.row and line.failure
    ]
    return Comparison(
        name=spec.name,
        over=tuple(over),
        items={
            split: {t: len(by_task[t]) for t in spec.tasks}
            for split, by_task in scores.labels.items()
        },
        alone=tuple(rows_of(alone, panel, (), {})),
        reference=found[reference.recipe.key] if reference else None,
        lines=lines,
        matrix=matrix(panel, list(once.values()), list(once)),
        tie_set=(
            replace(
                ties, labels=tuple(k for key in ties.labels for k, v in once.items() if v == key)
            )
            if ties
            else None
        ),
        as_reported=as_reported(
            {v.label: [s.score for s in own[v.label]] for v in rows if v.same_as is None}, TOP
        ),
        spent=cost_of(scores),
        notes=tuple(notes),
    )


def _plural(over: Sequence[str]) -> str:
    """What the rows are, for people."""
    names = {"method": "methods", "order": "orders", "nm": "n:m", "density": "densities"}
    return names[over[0].partition("=")[0]] if len(over) == 1 else "rows"


def _ends(rows: Sequence[Value], own: Mapping[str, list[Scored]]) -> list[str]:
    """Rows whose best shared λ is the smallest or largest that was tried: they may be better than
    they look.
    """
    found = []
    for value in rows:
        shared = {s.recipe.lambdas[0][1]: s.score for s in own[value.label] if s.recipe.is_shared}
        best = max(shared, key=lambda x: shared[x]) if len(shared) > 2 else None
        if value.same_as is None and best is not None and best in (min(shared), max(shared)):
            found.append(f"{value.label} (λ={best:g})")
    if not found:
        return []
    return [
        "At an end of what was tried, so widen space.lambda.methods or baselines:"
        f" {', '.join(found)}."
    ]


def _own(spec: Spec, scores: RecordScores) -> list[Scored]:
    """The candidates of one row."""
    is_candidate = candidate_of(spec)
    return [s for s in scores.searched.values() if is_candidate(s.recipe)]


def _best(scores: RecordScores, candidates: Any, *, shared: bool = False) -> Scored | None:
    """The best by search score of those that are confirmed."""
    chosen = [
        s
        for s in candidates
        if s.recipe.key in scores.confirmed and (s.recipe.is_shared or not shared)
    ]
    return next(iter(ranked(chosen)), None)


def _line_of(scored: Scored, scores: RecordScores) -> Entry:
    text, key = str(scored.recipe), scored.recipe.key
    return Entry(
        label=text, role="candidate", scored=scores.confirmed[key], searched=scored, text=text
    )


def comparison_verdict(found: Comparison) -> str:
    """The highest value, and which are told from the best shared-λ Task Arithmetic."""
    done = [line for line in found.lines if line.row is not None]
    if not done:
        return "No row is confirmed yet."
    top = max(done, key=lambda line: line.row.score if line.row else 0.0)
    assert top.row is not None
    text = f"Highest average: {top.label}, {100 * top.row.score:.2f}."
    if found.reference is None:
        return text
    held = {
        line.row.key: (line.label, of)
        for line in reversed(done)
        if line.row and (of := line.against)
    }
    told = [(label, of) for label, of in reversed(held.values()) if of.p_holm < SIGNIFICANT]
    above = [label for label, contrast in told if contrast.estimate > 0]
    below = [label for label, contrast in told if contrast.estimate < 0]
    text += (
        " Above the best shared-λ Task Arithmetic (Holm's correction):"
        f" {', '.join(above) or 'none'}; below: "
    )
    return (
        text
        + f"{', '.join(below) or 'none'}; {len(held) - len(told)} of {len(held)} cannot be told"
        " from it."
    )
