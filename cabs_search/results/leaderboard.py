"""Leaderboard, computed from the record alone; nothing is scored again.

Terminal, report.html and MLflow show this one value. Rows are compared on the confirm split, which
no proposal has seen. The best found and the best baseline are chosen by search scores, before the
confirm split is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cabs_search.common.formats import as_p, finite, number, points, points_between
from cabs_search.merging.method import calibration_note
from cabs_search.record.entries import Scored
from cabs_search.record.folder import StudyFolder
from cabs_search.record.outcomes import Outcomes
from cabs_search.results.as_reported import Reported, as_reported
from cabs_search.results.optimism import Optimism, optimism_of
from cabs_search.results.panel import Contrast
from cabs_search.results.recommendation import Recommendation, recommendation_of
from cabs_search.results.refinement import Refinement
from cabs_search.results.rows import (
    BASELINE,
    FOUND,
    RECOMMENDED,
    SIGNIFICANT,
    START,
    Row,
    ensemble_entries,
    make_rows,
    merged_entry,
    reference_entries,
)
from cabs_search.results.sampled import Sampled, sampled_of
from cabs_search.results.scores import RecordScores
from cabs_search.results.spent import Cost, cost_of
from cabs_search.results.tie_set import TieSet, tie_set
from cabs_search.results.tried import Tried, tried_candidates
from cabs_search.search.candidates import (
    Candidates,
    best_of,
    ensemble_recipes,
    on_front,
    ranked,
    reference_recipes,
)
from cabs_search.spec.load import load
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import SPLITS


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Results of a study."""

    name: str
    candidates: int
    """Candidates with every search item scored."""
    items: Mapping[str, Mapping[str, int]]
    """Number of items by split and task."""
    rows: tuple[Row, ...]
    verdict: str
    """One sentence: whether the best found beats the best baseline."""
    baseline: str | None
    """Label of the best baseline, by search score."""
    recommendation: Recommendation | None = None
    refinement: Refinement | None = None
    tie_set: TieSet | None
    optimism: Optimism | None
    as_reported: tuple[Reported, ...]
    """The top of each method's search as papers report it."""
    spent: Cost
    tried: tuple[Tried, ...]
    objective: str = ""
    """Sentence that says what the score is; empty: the mean of the tasks' metrics."""
    calibration: str = ""
    """Sentence on the methods that used calibration items; empty: none did."""
    front: tuple[str, ...] = ()
    """Keys of the candidates on the Pareto front, if the search had several objectives."""
    sampled: tuple[Sampled, ...] = ()
    """Sampled runs by temperature; none if there are none on record."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which knows no infinity."""
        values: dict[str, Any] = finite(asdict(self))
        return values

    @property
    def chosen(self) -> Row | None:
        """The row of what is recommended, else of the best found; None before it is confirmed."""
        by_label = {row.label: row for row in self.rows}
        return by_label.get(RECOMMENDED) or by_label.get(FOUND)

    def confirmed(self, scores: RecordScores) -> dict[str, Scored]:
        """Return what is confirmed, by recipe's key, with the scores of the rows."""
        shown = {row.key: row.tasks for row in self.rows if row.key in scores.confirmed}
        return {
            key: replace(scored, scores=shown.get(key, scored.scores))
            for key, scored in scores.confirmed.items()
        }

    def row(self, label: str) -> Row:
        """Return the row with a label."""
        return next(row for row in self.rows if row.label == label)


def read_leaderboard(folder: str | Path) -> Leaderboard:
    """Read the leaderboard of a study's folder.

    Raises:
        ValueError: nothing is recorded there.

    """
    path = StudyFolder(Path(folder))
    if not path.spec.is_file() or not path.outcomes.is_dir():
        raise ValueError(
            f"{folder}: holds no study; make one with: cabs-search run SPEC --output {folder}"
        )
    spec = load(path.spec, locations=False)
    return build_leaderboard(spec, Outcomes(path.outcomes, spec.tasks, must_exist=True))


def build_leaderboard(spec: Spec, outcomes: Outcomes) -> Leaderboard:
    """Compute the leaderboard of a study's record."""
    return board_of(spec, RecordScores.read(outcomes, spec))


def board_of(spec: Spec, scores: RecordScores) -> Leaderboard:
    """Compute the leaderboard from scores."""
    spent, refinement, confirmed = cost_of(scores), scores.refinement, scores.confirmed
    refined = _refined_rows(scores)
    searched = {k: s for k, s in scores.searched.items() if k not in scores.refined_keys}
    scores = replace(scores, searched=searched)
    best_shared = Candidates.of(spec).best_shared(searched)
    shared = [s for s in best_shared.values() if s.recipe.key in confirmed]
    recommendation = recommendation_of(
        scores.recommended,
        scores.expected,
        searched,
        scores.stopped,
        is_refined=RECOMMENDED in refined,
    )
    found = refined | _found_rows(spec, scores, recommendation, refined, shared)
    entries = reference_entries(reference_recipes(spec.experts), spec.heads, confirmed)
    entries += ensemble_entries(ensemble_recipes(spec), confirmed)
    entries += [
        merged_entry(f"best shared-λ {s.recipe.method.name}", "baseline", s, confirmed)
        for s in shared
    ]
    entries += [merged_entry(label, "candidate", s, confirmed) for label, s in found.items()]
    several = len(scores.objective.names) > 1
    panel = scores.panel(spec.tasks, spec.seed, {entry.key: entry.scored for entry in entries})
    references = {}
    if shared:
        references[BASELINE] = ranked(shared)[0].recipe.key
    if FOUND in found:
        references[FOUND] = found[FOUND].recipe.key
    if refinement and refined and refinement.start in {s.recipe.key for s in found.values()}:
        references[START] = refinement.start
    candidates = list(dict.fromkeys(s.recipe.key for s in [*found.values(), *shared]))
    tied = scores.confirmation.tied if scores.confirmation else None
    ties = tie_set(panel, candidates, known=tied)
    rows = make_rows(entries, panel, ties.labels if ties else (), references) if entries else []
    # rows with one recipe share a key: the first of them names it
    label_of = {entry.key: entry.label for entry in reversed(entries)}
    baseline = label_of[references[BASELINE]] if BASELINE in references else None
    return Leaderboard(
        name=spec.name,
        candidates=len(searched),
        items={split: {t: len(scores.labels[split][t]) for t in spec.tasks} for split in SPLITS},
        rows=tuple(rows),
        verdict=_verdict(rows, baseline),
        recommendation=recommendation,
        baseline=baseline,
        tie_set=replace(ties, labels=tuple(label_of[k] for k in ties.labels)) if ties else None,
        optimism=(
            optimism_of(spec.tasks, spec.seed, scores, panel, references[FOUND])
            if FOUND in references
            else None
        ),
        as_reported=as_reported(_scores_by_method(searched.values()), spec.search.confirm),
        refinement=_with_gains(refinement, rows),
        spent=spent,
        tried=tuple(tried_candidates(searched)),
        objective=scores.objective.text,
        calibration=calibration_note(spec.methods),
        front=tuple(s.recipe.key for s in on_front(searched.values())) if several else (),
        sampled=sampled_of(
            spec.name,
            [name for name, task in spec.tasks.items() if task.kind.generates],
            rows,
            scores.sampled,
            baseline,
        ),
    )


def _found_rows(
    spec: Spec,
    scores: RecordScores,
    recommendation: Recommendation | None,
    refined: Collection[str],
    shared: Sequence[Scored],
) -> dict[str, Scored]:
    """Return what the search found and is confirmed, by the label of its row.

    Args:
        spec: the study.
        scores: without candidates that were refined.
        recommendation: what the search recommends.
        refined: labels of refined candidates.
        shared: the best shared-λ candidates, which have rows.

    """
    top = best_of(scores.searched.values(), spec.search.confirm)
    rows = {FOUND: top[0]} if top else {}
    has_row = {s.recipe.key for s in shared}
    for place, one in enumerate(top[1:], 2):
        if one.recipe.key not in has_row:
            rows[f"found #{place}"] = one
    if recommendation is not None and RECOMMENDED not in refined:
        rows = {RECOMMENDED: scores.searched[recommendation.key]} | rows
    start = scores.refinement.start if scores.refinement and refined else ""
    if start in scores.searched and start not in {s.recipe.key for s in rows.values()}:
        rows = {START: scores.searched[start]} | rows
    return {label: s for label, s in rows.items() if s.recipe.key in scores.confirmed}


def _refined_rows(scores: RecordScores) -> dict[str, Scored]:
    """Return refined candidates that are confirmed, by the label of their row, the finest first.

    The label ``recommended`` is the finest one's.
    """
    rows: dict[str, Scored] = {}
    refinement = scores.refinement
    for level in refinement.kept if refinement else ():
        known = scores.refined_keys & scores.confirmed.keys() & scores.searched.keys()
        if level.key in known:
            label = f"refined by {level.level}"
            if refinement and level is refinement.kept[-1]:
                label = RECOMMENDED
            rows = {label: scores.searched[level.key]} | rows
    return rows


def _with_gains(refinement: Refinement | None, rows: Sequence[Row]) -> Refinement | None:
    """Return a refinement whose text says what each level gained on fresh items."""
    if refinement is None:
        return None
    by_key = {row.key: row for row in rows}
    gains = [
        f"{level.level} {_in_words(by_key[level.key].against[START])}"
        for level in refinement.kept
        if level.key in by_key and START in by_key[level.key].against
    ]
    text = f" On fresh items, against the {START}: {'; '.join(gains)}." if gains else ""
    return replace(refinement, text=refinement.text + text)


def _scores_by_method(searched: Iterable[Scored]) -> dict[str, list[float]]:
    by_method: dict[str, list[float]] = {}
    for scored in searched:
        by_method.setdefault(scored.recipe.method.name, []).append(scored.score)
    return by_method


def _verdict(rows: Sequence[Row], baseline_label: str | None) -> str:
    """Say in one sentence whether what is recommended, or the best found, beats the baseline."""
    by_label = {row.label: row for row in rows}
    if FOUND not in by_label:
        return "No candidate is confirmed yet."
    label = RECOMMENDED if RECOMMENDED in by_label else FOUND
    found = by_label[label]
    what = "recommended candidate" if label == RECOMMENDED else "best found"
    score = f"{number(found.score)} on fresh items"
    if baseline_label is None:
        return f"The {what} scores {score}; the spec names no baseline."
    baseline = by_label[baseline_label]
    if baseline.key == found.key:
        return f"Nothing searched beats the {baseline_label}, which is the {what} ({score})."
    contrast = found.against[BASELINE]
    if contrast.p_holm < SIGNIFICANT:
        verb = "beats" if contrast.estimate > 0 else "is worse than"
    else:
        verb = "cannot be told from"
    return (
        f"The {what} ({score}) {verb} the {baseline_label} ({number(baseline.score)}):"
        f" {_in_words(contrast)}."
    )


def _in_words(contrast: Contrast) -> str:
    """Write a contrast: points, simultaneous interval, adjusted p."""
    p_value = as_p(contrast.p_holm)
    return (
        f"{points(contrast.estimate, typeset=False)} points"
        f" {points_between(contrast.interval, typeset=False)},"
        f" p {'' if p_value.startswith('<') else '= '}{p_value}"
    )
