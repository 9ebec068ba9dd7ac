"""The leaderboard, from what was recorded: nothing is run again, and no number comes from anywhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cabs_search import significance
from cabs_search.baselines import best_shared, ranked, singles
from cabs_search.metrics import Values, is_mean, metric
from cabs_search.outcomes import Outcomes, Scored
from cabs_search.recipe import Recipe
from cabs_search.spec import Spec, load
from cabs_search.tasks import SPLITS, SplitName

REPLICATES = 2000
"""Bootstrap replicates; a quarter where some metric is none of the means of items, as these cost more."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard."""

    label: str
    recipe: dict[str, Any] | None
    """None where the row is no model."""
    key: str | None
    score: float
    """Mean of the tasks' metrics on the confirm split."""
    interval: tuple[float, float]
    """95 %, by bootstrap over items, each task's by itself."""
    tasks: Mapping[str, float]
    """The metric by task on the confirm split."""
    task_intervals: Mapping[str, tuple[float, float]]
    losses: Mapping[str, float]
    """Mean loss by task on the confirm split: nats, of a regression the mean squared error."""
    search_score: float | None
    """What it scored on the search split, on which it was chosen: too high for the best of many."""
    text: str
    """The recipe in words."""


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """What a study found."""

    name: str
    candidates: int
    """Candidates with every search item scored."""
    items: Mapping[str, Mapping[str, int]]
    """Items by split and task."""
    rows: tuple[Row, ...]
    verdicts: tuple[str, ...]
    """In words, whether the best found beats the best shared-λ rows."""
    comparisons: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The paired tests behind the verdicts, by the row compared with."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity."""
        values: dict[str, Any] = finite(asdict(self))
        return values

    def row(self, label: str) -> Row:
        """A row by its label."""
        return next(row for row in self.rows if row.label == label)


def finite(value: Any) -> Any:
    """Plain values with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def leaderboard(folder: str | Path) -> Leaderboard:
    """Read a study's folder.

    Raises:
        ValueError: nothing is recorded there.

    """
    path = Path(folder)
    if not (path / "spec.yaml").is_file() or not (path / "outcomes" / "outcomes.sqlite").is_file():
        raise ValueError(f"{folder}: holds no study; make one with: cabs-search run SPEC --output {folder}")
    return build(load(path / "spec.yaml", locations=False), Outcomes(path / "outcomes"))


def build(spec: Spec, outcomes: Outcomes) -> Leaderboard:
    """The leaderboard of a study's record."""
    return board_of(spec, Scores.read(spec, outcomes))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A record, read once."""

    searched: Mapping[str, Scored]
    """By recipe's key, on the search split."""
    confirmed: Mapping[str, Scored]
    """By recipe's key, on the confirm split."""
    labels: Mapping[SplitName, Mapping[str, Any]]
    """The items' truth by split and task."""

    @classmethod
    def read(cls, spec: Spec, outcomes: Outcomes, wanted: Callable[[Recipe], bool] = lambda _: True) -> Scores:
        """All of a record; ``wanted``: or just these recipes, with base and experts."""
        alone = {recipe.key for recipe in singles(spec).values()}
        return cls(
            searched=outcomes.scored(spec, "search", wanted),
            confirmed=outcomes.scored(spec, "confirm", lambda recipe: recipe.key in alone or wanted(recipe)),
            labels={split: outcomes.labels(spec, split) for split in SPLITS},
        )


def board_of(spec: Spec, scores: Scores) -> Leaderboard:
    """The leaderboard from scores."""
    searched, confirmed, labels = scores.searched, scores.confirmed, scores.labels["confirm"]
    rows, used = [], dict[str, Scored]()

    def add(label: str, recipe: Recipe) -> None:
        if (scored := confirmed.get(recipe.key)) is not None:
            used[label] = scored
            rows.append(row_of(spec, label, scored, searched.get(recipe.key), labels))

    alone = singles(spec)
    for label, recipe in alone.items():
        add(label, recipe)
    if (virtual := ideal(spec, alone, confirmed, labels)) is not None:
        rows.append(virtual)
    shared = {f"best shared-λ {m}": s for m, s in best_shared(spec, searched).items()}
    for label, scored in shared.items():
        add(label, scored.recipe)
    for place, scored in enumerate(ranked(searched.values()), 1):
        if scored.recipe.key in confirmed and place <= spec.search.confirm:
            add("best found" if place == 1 else f"found #{place}", scored.recipe)
    comparisons = {
        label: asdict(compare(spec, used["best found"], used[label], labels))
        for label in shared
        if {label, "best found"} <= used.keys()
    }
    return Leaderboard(
        name=spec.name,
        candidates=len(searched),
        items={split: {t: len(scores.labels[split][t]) for t in spec.tasks} for split in SPLITS},
        rows=tuple(rows),
        verdicts=tuple(_verdict(label, used, found) for label, found in comparisons.items()),
        comparisons=comparisons,
    )


def compare(spec: Spec, a: Scored, b: Scored, labels: Mapping[str, Values]) -> significance.Comparison:
    """Two candidates on the same items, paired, each task weighing the same.

    Where every metric is a mean of items, a paired t-test; else a paired bootstrap of the metrics' difference.
    """
    if all(is_mean(task) for task in spec.tasks.values()):
        strata = np.concatenate([np.full(len(o.scores), task) for task, o in a.tasks.items()])
        values = [np.concatenate([s.tasks[task].scores for task in a.tasks]) for s in (a, b)]
        return significance.paired(values[0], values[1], strata)
    differences = [
        _replicates(spec, task, a, labels[task]) - _replicates(spec, task, b, labels[task]) for task in spec.tasks
    ]
    return significance.from_replicates(a.score - b.score, np.mean(differences, axis=0))


def row_of(spec: Spec, label: str, scored: Scored, searched: Scored | None, labels: Mapping[str, Values]) -> Row:
    """A candidate's line, from its outcomes on the confirm split."""
    replicates = {task: _replicates(spec, task, scored, labels[task]) for task in spec.tasks}
    return Row(
        label=label,
        recipe=scored.recipe.as_dict(),
        key=scored.recipe.key,
        score=scored.score,
        interval=significance.percentile_interval(np.mean(list(replicates.values()), axis=0)),
        tasks=dict(scored.scores),
        task_intervals={t: significance.percentile_interval(r) for t, r in replicates.items()},
        losses=scored.losses,
        search_score=searched.score if searched else None,
        text="" if label == "base" or label.startswith("expert ") else str(scored.recipe),
    )


def ideal(
    spec: Spec, alone: Mapping[str, Recipe], confirmed: Mapping[str, Scored], labels: Mapping[str, Values]
) -> Row | None:
    """Per task the expert made for it: no model, what a merge without loss would score."""
    by_task = {task: confirmed.get(alone[f"expert {spec.expert_of(task)}"].key) for task in spec.tasks}
    found = {task: scored for task, scored in by_task.items() if scored is not None}
    if len(found) < len(by_task):
        return None
    replicates = {task: _replicates(spec, task, s, labels[task]) for task, s in found.items()}
    tasks = {task: scored.scores[task] for task, scored in found.items()}
    return Row(
        label="ideal",
        recipe=None,
        key=None,
        score=float(np.mean(list(tasks.values()))),
        interval=significance.percentile_interval(np.mean(list(replicates.values()), axis=0)),
        tasks=tasks,
        task_intervals={t: significance.percentile_interval(r) for t, r in replicates.items()},
        losses={task: scored.losses[task] for task, scored in found.items()},
        search_score=None,
        text="each task by its own expert (no model)",
    )


def _replicates(spec: Spec, task: str, scored: Scored, labels: Values) -> npt.NDArray[np.float64]:
    """A task's metric on bootstrap draws of its items: the same draws for every candidate, others for every task."""
    cheap = all(is_mean(t) for t in spec.tasks.values())
    outcome, place = scored.tasks[task], list(spec.tasks).index(task)
    draws = significance.resamples(len(labels), REPLICATES if cheap else REPLICATES // 4, (spec.seed, place))
    if is_mean(spec.tasks[task]):
        means: npt.NDArray[np.float64] = outcome.scores[draws].mean(axis=1, dtype=np.float64)
        return means
    return np.array([metric(spec.tasks[task], outcome.predictions[d], labels[d]) for d in draws])


def _verdict(label: str, used: Mapping[str, Scored], found: Mapping[str, Any]) -> str:
    if used[label].recipe.key == used["best found"].recipe.key:
        return f"The best found is the {label} row itself: nothing searched beats it."
    low, high = (100 * v for v in found["interval"])
    items = sum(len(o.scores) for o in used[label].tasks.values())
    numbers = (
        f"{100 * found['estimate']:+.1f} points [{low:+.1f}, {high:+.1f}], p = {found['p_value']:.2g}, {items} items"
    )
    if low > 0:
        return f"The best found beats {label}: {numbers}."
    if high < 0:
        return f"The best found is worse than {label}: {numbers}."
    return f"The best found cannot be told from {label}: {numbers}."


def as_text(board: Leaderboard) -> str:
    """The leaderboard for a terminal."""
    tasks = list(board.items["confirm"])
    head = ["", "confirm", "95 % interval", *tasks, "search", "recipe"]
    lines = [
        [
            row.label,
            f"{row.score:.4f}",
            f"[{row.interval[0]:.3f}, {row.interval[1]:.3f}]",
            *(f"{row.tasks[task]:.3f}" for task in tasks),
            "" if row.search_score is None else f"{row.search_score:.4f}",
            row.text,
        ]
        for row in board.rows
    ]
    count = {split: sum(board.items[split].values()) for split in board.items}
    title = (
        f"{board.name}: {board.candidates} candidates on {count['search']} search items; these rows on "
        f"{count['confirm']} confirm items that no proposal has seen"
    )
    if not board.rows:
        return (
            f"{board.name}: {board.candidates} candidates so far, no row confirmed yet; run the same command to go on"
        )
    return "\n".join([title, "", *table([head, *lines]), "", *board.verdicts])


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
