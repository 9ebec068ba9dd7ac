"""Comparison of an axis's values, computed from the record alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cabs_search.record.comparison_file import stored_comparison
from cabs_search.record.entries import Scored
from cabs_search.record.folder import StudyFolder
from cabs_search.record.outcomes import Outcomes
from cabs_search.results.as_reported import as_reported
from cabs_search.results.comparison import Comparison, ValueRow, plural
from cabs_search.results.matrix import matrix
from cabs_search.results.panel import Panel
from cabs_search.results.rows import (
    BASELINE,
    Entry,
    Row,
    ensemble_entries,
    make_rows,
    merged_entry,
    reference_entries,
)
from cabs_search.results.scores import RecordScores
from cabs_search.results.spent import cost_of
from cabs_search.results.tie_set import TieSet, tie_set
from cabs_search.search.axes import REFERENCE, Value, axis_values
from cabs_search.search.candidates import Candidates, ensemble_recipes, ranked, reference_recipes
from cabs_search.search.objectives.registry import objective_of, with_references
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec

TOP = 20
"""Candidates of each value that count as its runs where papers' statistics are shown."""
NOT_CONFIRMED = "no candidate has been confirmed yet; run the same command to go on"


def read_comparison(folder: Path) -> Comparison:
    """Read the comparison in a folder; raise ValueError if there is none."""
    stored = stored_comparison(folder)
    spec = parse(stored["spec"], str(StudyFolder(folder).comparison), locations=False)
    outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks, must_exist=True)
    scores = RecordScores.read(outcomes, spec)
    return build_comparison(spec, stored["over"], scores, stored["failures"], stored["notes"])


def best_of(folder: Path, label: str) -> str:
    """Return the key of a row's best recipe; raise ValueError if there is none."""
    rows = {line.label: line.row for line in read_comparison(folder).lines if line.row is not None}
    key = rows[label].key if label in rows else None
    if key is None:
        raise ValueError(
            f"--trial: a row of the comparison must be named ({', '.join(rows)}), but got {label}"
        )
    return key


def build_comparison(
    spec: Spec,
    over: Sequence[str],
    scores: RecordScores,
    failures: Mapping[str, str],
    notes: Sequence[str],
) -> Comparison:
    """Compare the values of axes.

    Args:
        spec: the study.
        over: axes, as in ``axis_values``.
        scores: record of all values together.
        failures: reasons why values were not searched, by label.
        notes: sentences to show with the results.

    """
    values = axis_values(spec, over)
    candidates = {value.label: _candidates(value.spec, scores) for value in values}
    best = {label: _best_confirmed(scores, c) for label, c in candidates.items()}
    shared = {label: _best_confirmed(scores, _shared(c)) for label, c in candidates.items()}
    arithmetic = [s for s in scores.searched.values() if s.recipe.method.name == REFERENCE]
    reference = _best_confirmed(scores, _shared(arithmetic))
    alone = reference_entries(reference_recipes(spec.experts), spec.heads, scores.confirmed)
    alone += ensemble_entries(ensemble_recipes(spec), scores.confirmed)
    merged = {
        key: merged_entry(str(s.recipe), "candidate", s, scores.confirmed)
        for key in (reference, *best.values(), *shared.values())
        if key and (s := scores.searched[key])
    }
    scored = {entry.key: entry.scored for entry in (*alone, *merged.values())}
    panel = scores.panel(spec.tasks, spec.seed, scored)
    # values that are the same study count once
    key_of = {v.label: key for v in values if _is_tested(v) and (key := best[v.label])}
    keys = list(dict.fromkeys(key_of.values()))
    ties = tie_set(panel, keys, plural(over)) if len(key_of) > 1 else None
    rows = _rows(merged, {reference, *best.values()}, panel, ties, reference)
    lines = []
    for value in values:
        reason = None if best[value.label] else NOT_CONFIRMED
        lines += [
            ValueRow(
                label=value.label,
                values=value.values,
                row=rows.get(best[value.label]),
                shared=rows.get(shared[value.label]),
                candidates=len(candidates[value.label]),
                failure=failures.get(value.same_as or value.label, reason),
                is_reference=value.is_reference,
            )
        ]
    objective = filter(None, [scores.objective.text])
    searched = {v.label: [s.score for s in candidates[v.label]] for v in values if not v.same_as}
    return Comparison(
        name=spec.name,
        over=tuple(over),
        items={
            split: {task: len(by_task[task]) for task in spec.tasks}
            for split, by_task in scores.labels.items()
        },
        alone=tuple(make_rows(alone, panel)),
        reference=rows.get(reference),
        lines=tuple(lines),
        matrix=matrix(panel, list(key_of.values()), list(key_of)),
        tie_set=replace(ties, labels=_labels(ties, key_of)) if ties else None,
        as_reported=as_reported(searched, TOP),
        spent=cost_of(scores, sum(not value.same_as for value in values)),
        notes=(*objective, *notes, *_at_an_end(values, candidates), *_stale(lines)),
        objective=scores.objective.text,
    )


def _rows(
    merged: Mapping[str, Entry],
    best: Collection[str | None],
    panel: Panel,
    ties: TieSet | None,
    reference: str | None,
) -> dict[str | None, Row]:
    """Compute the rows of merged models by recipe's key.

    The best rows are one family of tests, without those that are only best with a shared λ.
    """
    tied = ties.labels if ties else ()
    tested = [entry for key, entry in merged.items() if key in best]
    others = [entry for key, entry in merged.items() if key not in best]
    rows = make_rows(tested, panel, tied, {BASELINE: reference} if reference else {})
    return {row.key: row for row in (*rows, *make_rows(others, panel, tied))}


def _candidates(spec: Spec, scores: RecordScores) -> list[Scored]:
    """Return the candidates of a value's spec, judged by what its objective compares with."""
    own, searched = Candidates.of(spec), scores.searched
    objective = with_references(objective_of(spec), lambda recipe: searched.get(recipe.key))
    found = [s for s in searched.values() if own.includes(s.recipe)]
    return found if objective is None else [objective.applied(s) for s in found]


def _shared(candidates: Iterable[Scored]) -> list[Scored]:
    return [s for s in candidates if s.recipe.is_shared]


def _best_confirmed(scores: RecordScores, candidates: Iterable[Scored]) -> str | None:
    """Return the key of the confirmed candidate with the best search score."""
    confirmed = ranked(s for s in candidates if s.recipe.key in scores.confirmed)
    return confirmed[0].recipe.key if confirmed else None


def _is_tested(value: Value) -> bool:
    return value.same_as is None and not value.is_reference


def _stale(lines: Iterable[ValueRow]) -> list[str]:
    """Say which rows are from an earlier run."""
    return [
        f"{line.label}: {line.failure}; its row is of before."
        for line in lines
        if line.row and line.failure
    ]


def _labels(ties: TieSet, key_of: Mapping[str, str]) -> tuple[str, ...]:
    """Return the labels of a tie set of keys."""
    return tuple(label for key in ties.labels for label, k in key_of.items() if k == key)


def _at_an_end(values: Sequence[Value], candidates: Mapping[str, Iterable[Scored]]) -> list[str]:
    """Name the values whose best shared λ is the smallest or largest tried."""
    at_an_end = []
    for value in values:
        shared = {s.recipe.lambdas[0][1]: s.score for s in _shared(candidates[value.label])}
        if value.same_as is not None or len(shared) < 3:
            continue
        best = max(shared, key=lambda x: shared[x])
        if best in (min(shared), max(shared)):
            at_an_end.append(f"{value.label} (λ={best:g})")
    if not at_an_end:
        return []
    return [
        "At an end of what was tried, so widen space.lambda.methods or baselines:"
        f" {', '.join(at_an_end)}."
    ]
