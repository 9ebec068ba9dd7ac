"""Sampled runs of a study's finalists, as papers report them: mean, t-interval, Welch's test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cabs_search.common.formats import finite
from cabs_search.results.rows import Row
from cabs_search.stats.independent import mean_interval, welch


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
    """Sampled runs of a study's finalists."""

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


def sampled(
    name: str,
    temperature: float,
    tasks: Sequence[str],
    rows: Sequence[Row],
    runs: Mapping[str, Sequence[float]],
    baseline: str | None,
) -> Sampled:
    """Compare sampled runs of rows of a leaderboard with those of the best baseline.

    Args:
        name: the study's.
        temperature: of the runs.
        tasks: those that were sampled.
        rows: rows of the leaderboard, each a model.
        runs: score of each run, two at the least, by label of the row.
        baseline: label of the best baseline's row; None: there is none.

    """
    made = []
    for row in rows:
        own, tested = runs[row.label], row.label != baseline and baseline in runs
        test = welch(own, runs[str(baseline)]) if tested else None
        made.append(
            SampledRow(
                label=row.label,
                key=str(row.key),
                runs=tuple(own),
                mean=float(np.mean(own)),
                interval=mean_interval(own),
                greedy=float(np.mean([row.tasks[task] for task in tasks])),
                difference=float(np.mean(own) - np.mean(runs[str(baseline)])) if tested else None,
                welch_t=test.statistic if test else None,
                welch_p=test.p_value if test else None,
            )
        )
    return Sampled(
        name=name, temperature=temperature, tasks=tuple(tasks), baseline=baseline, rows=tuple(made)
    )
