"""Comparison of an axis's values, computed from the record alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cabs_search.record.folder import StudyFolder, stored_comparison
from cabs_search.record.outcomes import Outcomes, Scored
from cabs_search.results.as_reported import as_reported
from cabs_search.results.comparison import Comparison, ValueRow, plural
from cabs_search.results.matrix import matrix
from cabs_search.results.rows import BASELINE, Row, make_rows, merged_entry, reference_entries
from cabs_search.results.scores import RecordScores
from cabs_search.results.spent import cost_of
from cabs_search.results.tie_set import TieSet, tie_set
from cabs_search.search.axes import REFERENCE, Value, axis_values
from cabs_search.search.candidates import candidate_of, ranked, reference_recipes
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec

TOP = 20
"""Candidates of each value that count as its runs where papers' statistics are shown."""
NOT_CONFIRMED = "no candidate has been confirmed yet; run the same command to go on"


def read_comparison(folder: Path) -> Comparison:
    """Read the comparison in a folder; raise ValueError if there is none."""
    stored = stored_comparison(folder)
    spec = parse(stored["spec"], str(StudyFolder(folder).comparison), locations=False)
    scores = RecordScores.read(Outcomes(StudyFolder(folder).outcomes, spec.tasks))
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
    # rows that are tested together, then the other shared ones: a recipe counts once
    tested, others = _by_key((reference, *best.values())), _by_key(shared.values())
    others = {key: scored for key, scored in others.items() if key not in tested}
    experts = {task: spec.expert_of(task) for task in spec.tasks}
    alone = reference_entries(reference_recipes(spec), experts, scores.confirmed)
    merged = {
        key: merged_entry(str(s.recipe), "candidate", s, scores.confirmed[key])
        for key, s in (tested | others).items()
    }
    entries = [*alone, *merged.values()]
    panel = scores.panel(spec.tasks, spec.seed, {entry.key: entry.scored for entry in entries})
    key_of = {
        value.label: scored.recipe.key
        for value in values
        if value.same_as is None and not value.is_reference
        if (scored := best[value.label]) is not None
    }
    ties = None
    if len(key_of) > 1:
        ties = tie_set(panel, list(dict.fromkeys(key_of.values())), plural(over))
    tied = ties.labels if ties else ()
    references = {BASELINE: reference.recipe.key} if reference else {}
    rows = {
        row.key: row
        for row in (
            *make_rows([merged[key] for key in tested], panel, tied, references),
            *make_rows([merged[key] for key in others], panel, tied),
        )
    }

    def row_of(scored: Scored | None) -> Row | None:
        return None if scored is None else rows[scored.recipe.key]

    lines = tuple(
        ValueRow(
            label=value.label,
            values=value.values,
            row=row_of(best[value.label]),
            shared=row_of(shared[value.label]),
            candidates=len(candidates[value.label]),
            failure=failures.get(
                value.same_as or value.label, None if best[value.label] else NOT_CONFIRMED
            ),
            is_reference=value.is_reference,
        )
        for value in values
    )
    stale = [
        f"{line.label}: {line.failure}; its row is of before."
        for line in lines
        if line.row and line.failure
    ]
    searched = {
        value.label: [s.score for s in candidates[value.label]]
        for value in values
        if value.same_as is None
    }
    return Comparison(
        name=spec.name,
        over=tuple(over),
        items={
            split: {task: len(by_task[task]) for task in spec.tasks}
            for split, by_task in scores.labels.items()
        },
        alone=tuple(make_rows(alone, panel)),
        reference=row_of(reference),
        lines=lines,
        matrix=matrix(panel, list(key_of.values()), list(key_of)),
        tie_set=replace(ties, labels=_labels(ties, key_of)) if ties else None,
        as_reported=as_reported(searched, TOP),
        spent=cost_of(scores),
        notes=(*notes, *_at_an_end(values, candidates), *stale),
    )


def _candidates(spec: Spec, scores: RecordScores) -> list[Scored]:
    is_candidate = candidate_of(spec)
    return [s for s in scores.searched.values() if is_candidate(s.recipe)]


def _shared(candidates: Iterable[Scored]) -> list[Scored]:
    return [s for s in candidates if s.recipe.is_shared]


def _best_confirmed(scores: RecordScores, candidates: Iterable[Scored]) -> Scored | None:
    """Return the confirmed candidate with the best search score."""
    return next(iter(ranked(s for s in candidates if s.recipe.key in scores.confirmed)), None)


def _by_key(candidates: Iterable[Scored | None]) -> dict[str, Scored]:
    return {scored.recipe.key: scored for scored in candidates if scored is not None}


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
