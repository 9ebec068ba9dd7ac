"""Sampled runs of a study's finalists, as papers report them: mean, t-interval, Welch's test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cabs_search.common.formats import as_p, between, finite, number, points
from cabs_search.record.sampled import SampledRun
from cabs_search.results.rows import Row
from cabs_search.stats.independent import mean_interval, welch

LEAST_RUNS = 2
"""Fewest runs that have a spread."""
NOTE = (
    "Runs differ by their seeds alone: intervals and p say nothing of other items, as the"
    " leaderboard's paired tests do."
)


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """Sampled runs of one model on the confirm split."""

    label: str
    key: str
    runs: tuple[float, ...]
    """Score of each run: the mean of its tasks' metrics."""
    mean: float
    interval: tuple[float, float]
    """95 % t-interval of the mean over runs; items are taken as they are."""
    greedy: float
    """Score of the same tasks without sampling, as the leaderboard has it: of a row that ended
    early, what is expected on all items.
    """
    difference: float | None
    """Mean minus that of the best baseline; None: the row is it, or there is none."""
    welch_t: float | None
    welch_p: float | None


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Sampled runs of a study's finalists at one temperature."""

    name: str
    temperature: float
    tasks: tuple[str, ...]
    """Tasks that generate texts; others know no sampling."""
    baseline: str | None
    """Label of the row that others are tested against."""
    rows: tuple[SampledRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which knows no infinity."""
        values: dict[str, Any] = finite(asdict(self))
        return values

    @property
    def counts(self) -> str:
        """Number of runs of each row, in words."""
        least, most = (f([len(row.runs) for row in self.rows]) for f in (min, max))
        return f"{least} runs of each" if least == most else f"{least} to {most} runs of each"

    @property
    def title(self) -> str:
        """Number of runs, temperature and tasks, in words."""
        return (
            f"{self.counts} at temperature {self.temperature:g}, on the confirm items of"
            f" {', '.join(self.tasks)}"
        )

    def row(self, key: str | None) -> SampledRow | None:
        """Return the row of a recipe's key; None: it has no runs."""
        return next((row for row in self.rows if row.key == key), None)

    def text_of(self, key: str | None) -> str:
        """Say in a sentence what the runs of a recipe's key give; empty if there are none."""
        row = self.row(key)
        if row is None:
            return ""
        text = (
            f"Sampled {len(row.runs)} times at temperature {self.temperature:g}, {row.label} scores"
            f" {number(row.mean)} {between(row.interval)} on average"
        )
        if row.difference is None or row.welch_p is None:
            return f"{text}."
        p_value = as_p(row.welch_p)
        return (
            f"{text}, {points(row.difference, typeset=False)} points to {self.baseline}"
            f" (Welch's test over runs: p {'' if p_value.startswith('<') else '= '}{p_value})."
        )


def sampled_of(
    name: str,
    tasks: Sequence[str],
    rows: Iterable[Row],
    runs: Iterable[SampledRun],
    baseline: str | None,
) -> tuple[Sampled, ...]:
    """Compare sampled runs of rows of a leaderboard with those of the best baseline.

    Args:
        name: the study's.
        tasks: those that were sampled.
        rows: rows of the leaderboard; a model's first row stands for it.
        runs: whole runs, in the order of their seeds.
        baseline: label of the best baseline's row; None: there is none.

    Returns:
        A value for each temperature, in their order; rows with fewer than two runs are left out.

    """
    by_temperature: dict[float, dict[str, list[float]]] = {}
    for run in runs:
        by_key = by_temperature.setdefault(run.sampling.temperature, {})
        by_key.setdefault(run.recipe, []).append(float(np.mean([run.scores[t] for t in tasks])))
    models: dict[str, Row] = {}
    for row in rows:
        if row.key is not None:
            models.setdefault(row.key, row)
    found = []
    for temperature, scores in sorted(by_temperature.items()):
        known = {k: own for k, own in scores.items() if k in models and len(own) >= LEAST_RUNS}
        best = next((known[k] for k in known if models[k].label == baseline), None)
        made = tuple(
            _row(models[key], known[key], tasks, None if known[key] is best else best)
            for key in models
            if key in known
        )
        if made:
            found.append(
                Sampled(
                    name=name,
                    temperature=temperature,
                    tasks=tuple(tasks),
                    baseline=baseline,
                    rows=made,
                )
            )
    return tuple(found)


def _row(
    row: Row, runs: Sequence[float], tasks: Sequence[str], others: Sequence[float] | None
) -> SampledRow:
    """Compare a row's runs with others, if there are any."""
    test = None if others is None else welch(runs, others)
    return SampledRow(
        label=row.label,
        key=str(row.key),
        runs=tuple(runs),
        mean=float(np.mean(runs)),
        interval=mean_interval(runs),
        greedy=float(np.mean([row.tasks[task] for task in tasks])),
        difference=None if others is None else float(np.mean(runs) - np.mean(others)),
        welch_t=test.statistic if test else None,
        welch_p=test.p_value if test else None,
    )
