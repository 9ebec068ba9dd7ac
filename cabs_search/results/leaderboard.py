"""The leaderboard, from what was recorded: nothing is run again, and no number comes from anywhere
else.

Terminal, report.html and MLflow show this one value. Rows are compared on the confirm split, which
no proposal has seen; what the search chose and the best baseline are fixed before that split is
looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cabs_search.common.formats import as_p, finite
from cabs_search.merging.masks.rules import settings
from cabs_search.merging.recipe import Method
from cabs_search.record.folder import StudyFolder
from cabs_search.record.outcomes import Outcomes, Scored
from cabs_search.results.as_reported import Reported, as_reported
from cabs_search.results.optimism import Optimism, optimism_of
from cabs_search.results.panel import Contrast, Panel
from cabs_search.results.scores import RecordScores
from cabs_search.results.spent import Cost, cost_of
from cabs_search.results.tie_set import TieSet, tie_set
from cabs_search.search.candidates import best_shared, ranked, reference_recipes
from cabs_search.spec.load import load
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import SPLITS

BASELINE, FOUND = "best baseline", "best found"
"""What rows are tested against."""
SIGNIFICANT = 0.05
Role = Literal["base", "expert", "ideal", "baseline", "candidate"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard."""

    label: str
    role: Role
    recipe: dict[str, Any] | None
    """None where the row is no model."""
    key: str | None
    score: float
    """Mean of the tasks' metrics on the confirm split."""
    interval: tuple[float, float]
    """95 %, of this row by itself."""
    simultaneous: tuple[float, float]
    """95 %, of all rows together: in 95 of 100 studies not one of them misses its row's true score.
    """
    tasks: Mapping[str, float]
    """The metric by task on the confirm split."""
    task_intervals: Mapping[str, tuple[float, float]]
    """95 %, each by itself."""
    losses: Mapping[str, float]
    """Mean loss by task on the confirm split: nats, of a regression the mean squared error."""
    search_score: float | None
    """What it scored on the search split, on which it was chosen: too high for the best of many."""
    text: str
    """The recipe in words."""
    against: Mapping[str, Contrast] = field(default_factory=dict)
    """By BASELINE and FOUND, of candidates and baselines, where the row is not that one itself."""
    tied: bool = False
    """Whether it cannot be told from the best candidate."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate with every search item scored."""

    place: int
    """In the order they were completed, from 1."""
    key: str
    text: str
    method: str
    amount: str
    """n:m or density; empty where the method has neither."""
    order: str
    """Pruning order; empty where the method has none."""
    lambdas: Mapping[str, float]
    """By expert, or expert and group."""
    shared: float | None
    """λ where it is one for all."""
    score: float
    tasks: Mapping[str, float]
    items: int
    """Search items scored up to and with this candidate."""


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """What a study found."""

    name: str
    candidates: int
    """Candidates with every search item scored."""
    items: Mapping[str, Mapping[str, int]]
    """Items by split and task."""
    rows: tuple[Row, ...]
    verdict: str
    """In one sentence, whether the best found beats the best baseline."""
    baseline: str | None
    """The label of the best baseline, by search score."""
    tie_set: TieSet | None
    optimism: Optimism | None
    as_reported: tuple[Reported, ...]
    """By method, the top of its search as papers report it."""
    spent: Cost
    tried: tuple[Tried, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity."""
        values: dict[str, Any] = finite(asdict(self))
        return values

    def row(self, label: str) -> Row:
        """A row by its label."""
        return next(row for row in self.rows if row.label == label)


def read_leaderboard(folder: str | Path) -> Leaderboard:
    """Read a study's folder.

    Raises:
        ValueError: nothing is recorded there.

    """
    path = StudyFolder(Path(folder))
    if not path.spec.is_file() or not path.outcomes.is_dir():
        raise ValueError(
            f"{folder}: holds no study; make one with: cabs-search run SPEC --output {folder}"
        )
    spec = load(path.spec, locations=False)
    return build_leaderboard(spec, Outcomes(path.outcomes, spec.tasks))


def build_leaderboard(spec: Spec, outcomes: Outcomes) -> Leaderboard:
    """The leaderboard of a study's record."""
    return board_of(spec, RecordScores.read(spec, outcomes))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a row is of, before it is compared."""

    label: str
    role: Role
    scored: Scored
    """On the confirm split; of a virtual row without a recipe of its own."""
    searched: Scored | None = None
    text: str = ""
    is_model: bool = True

    @property
    def key(self) -> str:
        """Its name in a panel; rows of one recipe share it."""
        return self.scored.recipe.key if self.is_model else self.label


def rows_of(
    lines: Sequence[Entry], panel: Panel, tied: Sequence[str], references: Mapping[str, str]
) -> list[Row]:
    """Rows with their intervals and tests.

    Args:
        lines: what the rows are of.
        panel: all of them, by key.
        tied: the keys of the tie set.
        references: the keys of what is tested against, by what it is called.

    """
    together = panel.intervals()
    compared = list(
        dict.fromkeys(line.key for line in lines if line.role in ("baseline", "candidate"))
    )
    against: dict[str, dict[str, Contrast]] = {key: {} for key in compared}
    for name, reference in references.items():
        others = [key for key in compared if key != reference]
        for key, contrast in zip(
            others, panel.contrasts([(key, reference) for key in others]), strict=True
        ):
            against[key][name] = contrast
    return [
        Row(
            label=line.label,
            role=line.role,
            recipe=line.scored.recipe.as_dict() if line.is_model else None,
            key=line.key if line.is_model else None,
            score=line.scored.score,
            interval=panel.own_interval(line.key),
            simultaneous=together[line.key],
            tasks=dict(line.scored.scores),
            task_intervals={
                task: panel.own_interval(line.key, task) for task in line.scored.scores
            },
            losses=line.scored.losses,
            search_score=line.searched.score if line.searched else None,
            text=line.text,
            against=against.get(line.key, {}),
            tied=line.key in tied,
        )
        for line in lines
    ]


def lines_alone(spec: Spec, confirmed: Mapping[str, Scored]) -> list[Entry]:
    """Base, experts and, where all of these are confirmed, the ideal."""
    alone = {
        label: confirmed[recipe.key]
        for label, recipe in reference_recipes(spec.experts).items()
        if recipe.key in confirmed
    }
    lines = [
        Entry(label=name, role="base" if name == "base" else "expert", scored=s)
        for name, s in alone.items()
    ]
    owners = {task: alone.get(f"expert {spec.expert_of(task)}") for task in spec.tasks}
    found = {task: scored for task, scored in owners.items() if scored is not None}
    if len(found) == len(owners):
        virtual = replace(
            next(iter(found.values())),
            tasks={task: scored.tasks[task] for task, scored in found.items()},
            scores={task: scored.scores[task] for task, scored in found.items()},
        )
        text = "each task by its own expert (no model)"
        lines.append(Entry(label="ideal", role="ideal", scored=virtual, text=text, is_model=False))
    return lines


def board_of(spec: Spec, scores: RecordScores) -> Leaderboard:
    """The leaderboard from scores."""
    searched, confirmed = scores.searched, scores.confirmed
    shared = [s for s in best_shared(spec, searched).values() if s.recipe.key in confirmed]
    top = ranked(searched.values())[: spec.search.confirm]
    found = [s for s in top if s.recipe.key in confirmed]
    lines = lines_alone(spec, confirmed)
    named: list[tuple[str, Role, Scored]] = [
        (f"best shared-λ {s.recipe.method.name}", "baseline", s) for s in shared
    ]
    named += [
        (FOUND if s is top[0] else f"found #{top.index(s) + 1}", "candidate", s) for s in found
    ]
    for name, role, one in named:
        own, text = confirmed[one.recipe.key], str(one.recipe)
        lines.append(Entry(label=name, role=role, scored=own, searched=one, text=text))
    panel = scores.panel(spec, {line.key: line.scored for line in lines})
    best = {BASELINE: ranked(shared)[:1], FOUND: [s for s in found if s is top[0]]}
    references = {name: of[0].recipe.key for name, of in best.items() if of}
    ties = tie_set(panel, list(dict.fromkeys(one.recipe.key for one in [*found, *shared])))
    rows = rows_of(lines, panel, ties.labels if ties else (), references) if lines else []
    labels = {line.key: line.label for line in reversed(lines)}
    return Leaderboard(
        name=spec.name,
        candidates=len(searched),
        items={split: {t: len(scores.labels[split][t]) for t in spec.tasks} for split in SPLITS},
        rows=tuple(rows),
        verdict=_verdict(rows, {name: labels[key] for name, key in references.items()}),
        baseline=labels.get(references.get(BASELINE, "")),
        tie_set=replace(ties, labels=tuple(labels[key] for key in ties.labels)) if ties else None,
        optimism=optimism_of(spec, scores, panel, references.get(FOUND)),
        as_reported=as_reported(_by_method(searched), spec.search.confirm),
        spent=cost_of(scores),
        tried=tuple(_tried(spec, scores)),
    )


def _by_method(searched: Mapping[str, Scored]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for scored in searched.values():
        found.setdefault(scored.recipe.method.name, []).append(scored.score)
    return found


def _tried(spec: Spec, scores: RecordScores) -> list[Tried]:
    items, found = 0, []
    for place, (key, scored) in enumerate(scores.searched.items(), 1):
        items += scored.items
        recipe = scored.recipe
        found.append(
            Tried(
                place=place,
                key=key,
                text=str(recipe),
                method=recipe.method.name,
                amount=amount_of(recipe.method),
                order=">".join(recipe.order) if recipe.method.has_order else "",
                lambdas=recipe.lambda_by_name,
                shared=recipe.lambdas[0][1] if recipe.is_shared else None,
                score=scored.score,
                tasks={task: scored.scores[task] for task in spec.tasks},
                items=items,
            )
        )
    return found


def amount_of(method: Method) -> str:
    """What a method keeps, as it is written: n:m or density."""
    known = settings(method.mask)
    return (
        str(method).removeprefix(method.name).split(" ")[1]
        if {"nm", "density"} & set(known)
        else ""
    )


def _verdict(rows: Sequence[Row], best: Mapping[str, str]) -> str:
    """Whether the best found beats the best baseline, in one sentence."""
    named = {row.label: row for row in rows}
    if FOUND not in best:
        return "No candidate is confirmed yet."
    found, name = named[FOUND], best.get(BASELINE)
    if name is None:
        return (
            f"The best found scores {found.score:.4f} on fresh items; the spec names no baseline."
        )
    baseline = named[name]
    if baseline.key == found.key:
        return (
            f"Nothing searched beats the {name}, which is the best found ({found.score:.4f} on"
            " fresh items)."
        )
    contrast = found.against[BASELINE]
    if contrast.p_holm < SIGNIFICANT:
        verb = "beats" if contrast.estimate > 0 else "is worse than"
    else:
        verb = "cannot be told from"
    return (
        f"The best found ({found.score:.4f} on fresh items) {verb} the {name}"
        f" ({baseline.score:.4f}): {in_points(contrast)}."
    )


def in_points(contrast: Contrast) -> str:
    """A contrast in words: points, simultaneous interval, adjusted p."""
    low, high = (100 * end for end in contrast.interval)
    p_value = as_p(contrast.p_holm)
    equals = "" if p_value.startswith("<") else "= "
    return (
        f"{100 * contrast.estimate:+z.1f} points [{low:+z.1f}, {high:+z.1f}], p {equals}{p_value}"
    )
