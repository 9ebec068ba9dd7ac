"""Rows of a leaderboard or a comparison, with their intervals and tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cabs_search.merging.recipe import BASE, Recipe
from cabs_search.record.entries import Scored
from cabs_search.results.panel import Contrast, Panel

BASELINE, FOUND = "best baseline", "best found"
"""Rows that others are tested against."""
RECOMMENDED = "recommended"
"""Label of the row of what a search recommends."""
START = "start of refining"
"""Row of what was refined by gradient, if that has one of its own; others are tested against it."""
SIGNIFICANT = 0.05
Role = Literal["base", "expert", "ideal", "ensemble", "baseline", "candidate"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a leaderboard, scored on the confirm split."""

    label: str
    role: Role
    recipe: dict[str, Any] | None
    """None if the row is no model."""
    key: str | None
    score: float
    """One score for all tasks: the mean of their metrics, or what the objective says."""
    interval: tuple[float, float]
    """95 % interval of this row by itself."""
    simultaneous: tuple[float, float]
    """95 % interval for all rows together: in 95 of 100 studies none misses its true score."""
    tasks: Mapping[str, float]
    """Metric by task."""
    task_intervals: Mapping[str, tuple[float, float]]
    """95 % interval of each metric by itself."""
    losses: Mapping[str, float]
    """Mean loss by task: nats; for regression the mean squared error."""
    search_score: float | None
    """Score on the search split, on which it was chosen: too high for the best of many."""
    text: str
    """Recipe in words."""
    objective: float | None = None
    """Number that the search maximized, on the search split, if that is not the score."""
    against: Mapping[str, Contrast] = field(default_factory=dict)
    """Contrasts of candidates and baselines with BASELINE, FOUND and START, except with itself."""
    items: int
    """Items that it was scored on; where these are not all, scores are what is expected on all."""
    forwards: int = 1
    """Number of models that read each item: 1, or those of an ensemble."""
    tied: bool = False
    """True if it cannot be told from the best candidate."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Scored candidate that becomes a row."""

    label: str
    role: Role
    scored: Scored
    """Outcomes on the confirm split; a row that is no model borrows a recipe."""
    searched: Scored | None = None
    """Outcomes on the search split."""
    text: str = ""
    is_model: bool = True

    @property
    def objective(self) -> float | None:
        """Number that the search maximized, if there is one that is not the score."""
        values = self.searched.values if self.searched else ()
        return values[0] if len(values) == 1 else None

    @property
    def key(self) -> str:
        """Key in a panel; rows with one recipe share it."""
        return self.scored.recipe.key if self.is_model else self.label


def merged_entry(
    label: str, role: Role, searched: Scored, confirmed: Mapping[str, Scored]
) -> Entry:
    """Return the entry of a merged model that is among the confirmed ones, by recipe's key."""
    recipe = searched.recipe
    scored = confirmed[recipe.key]
    return Entry(label=label, role=role, scored=scored, searched=searched, text=str(recipe))


def reference_entries(
    recipes: Mapping[str, Recipe], experts: Mapping[str, str], confirmed: Mapping[str, Scored]
) -> list[Entry]:
    """Return entries of base, experts and, if all of these are confirmed, the ideal.

    Args:
        recipes: base and experts as recipes, by label.
        experts: the model whose head scores a task, by task; of the base's all experts are tried.
        confirmed: outcomes on the confirm split, by recipe's key.

    """
    scored = {label: confirmed[r.key] for label, r in recipes.items() if r.key in confirmed}
    entries = [
        Entry(label=label, role="base" if label == "base" else "expert", scored=outcomes)
        for label, outcomes in scored.items()
    ]
    owners = {
        task: _best_expert(task, scored) if expert == BASE else f"expert {expert}"
        for task, expert in experts.items()
    }
    if all(owner in scored for owner in owners.values()):
        ideal = replace(
            scored[next(iter(owners.values()))],
            tasks={task: scored[owner].tasks[task] for task, owner in owners.items()},
            scores={task: scored[owner].scores[task] for task, owner in owners.items()},
        )
        text = f"each task by {_whose(experts)} (no model)"
        entries.append(Entry(label="ideal", role="ideal", scored=ideal, text=text, is_model=False))
    return entries


def ensemble_entries(recipes: Mapping[str, Recipe], confirmed: Mapping[str, Scored]) -> list[Entry]:
    """Return entries of the ensembles, by label, that are among the confirmed ones."""
    return [
        Entry(
            label=label,
            role="ensemble",
            scored=confirmed[recipe.key],
            text=f"{recipe}: {recipe.forwards} forwards an item (no model)",
            is_model=False,
        )
        for label, recipe in recipes.items()
        if recipe.key in confirmed
    ]


def _whose(experts: Mapping[str, str]) -> str:
    """Say which experts *ideal* takes; ``experts`` as of ``reference_entries``."""
    if BASE not in experts.values():
        return "its own expert"
    if set(experts.values()) == {BASE}:
        return "the expert that is best on it"
    return "its own expert, or the one that is best on it"


def _best_expert(task: str, scored: Mapping[str, Scored]) -> str:
    """Return the label of the expert with the highest score of a task; empty if there is none."""
    labels = [label for label in scored if label != BASE]
    return max(labels, key=lambda label: scored[label].scores[task], default="")


def make_rows(
    entries: Sequence[Entry],
    panel: Panel,
    tied: Collection[str] = (),
    references: Mapping[str, str] | None = None,
) -> list[Row]:
    """Make rows with their intervals and tests.

    Args:
        entries: what the rows are made from.
        panel: all of them, by key.
        tied: keys of the tie set.
        references: keys of the rows that others are tested against, by name.

    """
    simultaneous = panel.intervals()
    against = _contrasts(entries, panel, references or {})
    scores = {entry.key: panel.row_scores(entry.key) for entry in entries}
    return [
        Row(
            label=entry.label,
            role=entry.role,
            recipe=entry.scored.recipe.as_dict() if entry.is_model else None,
            key=entry.key if entry.is_model else None,
            score=scores[entry.key][0],
            interval=panel.own_interval(entry.key),
            simultaneous=simultaneous[entry.key],
            tasks=scores[entry.key][1],
            task_intervals={t: panel.own_interval(entry.key, t) for t in entry.scored.scores},
            losses=entry.scored.losses,
            search_score=entry.searched.score if entry.searched else None,
            text=entry.text,
            objective=entry.objective,
            against=against.get(entry.key, {}),
            items=panel.items_of(entry.key),
            forwards=entry.scored.recipe.forwards,
            tied=entry.key in tied,
        )
        for entry in entries
    ]


def _contrasts(
    entries: Sequence[Entry], panel: Panel, references: Mapping[str, str]
) -> dict[str, dict[str, Contrast]]:
    """Test every merged model against each reference, one family a reference; by key and name."""
    merged = (entry.key for entry in entries if entry.role in ("baseline", "candidate"))
    against: dict[str, dict[str, Contrast]] = {key: {} for key in merged}
    for name, reference in references.items():
        others = [key for key in against if key != reference]
        contrasts = panel.contrasts([(key, reference) for key in others])
        for key, contrast in zip(others, contrasts, strict=True):
            against[key][name] = contrast
    return against
