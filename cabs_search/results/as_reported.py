"""Statistics of a search's best candidates as papers report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cabs_search.stats.independent import mean_interval, student, welch


@dataclass(frozen=True, kw_only=True)
class Reported:
    """Best search scores of a method, taken as if they were independent runs."""

    label: str
    top: int
    """Number of candidates, the best by search score."""
    mean: float
    interval: tuple[float, float]
    """95 % t-interval of the mean."""
    against: str | None
    """Method it is tested against; None for the first."""
    welch_t: float | None
    welch_p: float | None
    student_t: float | None
    student_p: float | None


def as_reported(scores: Mapping[str, Sequence[float]], top: int) -> tuple[Reported, ...]:
    """Compare the top search scores of each method with those of the first.

    Args:
        scores: search scores by method; methods with one candidate are left out.
        top: scores of each method that count as its runs.

    """
    tops = {label: sorted(values, reverse=True)[:top] for label, values in scores.items()}
    tops = {label: values for label, values in tops.items() if len(values) > 1}
    first = next(iter(tops), "")
    methods = []
    for label, values in tops.items():
        tests: dict[str, Any] = dict.fromkeys(("welch_t", "welch_p", "student_t", "student_p"))
        if label != first:
            for name, test in (("welch", welch), ("student", student)):
                result = test(values, tops[first])
                tests |= {f"{name}_t": result.statistic, f"{name}_p": result.p_value}
        methods.append(
            Reported(
                label=label,
                top=len(values),
                mean=float(np.mean(values)),
                interval=mean_interval(values),
                against=None if label == first else first,
                **tests,
            )
        )
    return tuple(methods)
