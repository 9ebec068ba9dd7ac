"""Methods as papers report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cabs_search.stats.independent import mean_interval, student, welch


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A method as papers report it: the top of its search as if these were independent runs."""

    label: str
    top: int
    """How many of its candidates, the best by search score."""
    mean: float
    interval: tuple[float, float]
    """95 % t-interval of the mean."""
    against: str | None
    """The method it is tested against; None of the first."""
    welch_t: float | None
    welch_p: float | None
    student_t: float | None
    student_p: float | None


def as_reported(searched: Mapping[str, Sequence[float]], top: int) -> tuple[Reported, ...]:
    """Search scores of each method's top, with t-intervals, against the first method of two
    candidates or more.
    """
    tops = {label: sorted(scores, reverse=True)[:top] for label, scores in searched.items()}
    tops = {label: scores for label, scores in tops.items() if len(scores) > 1}
    first = next(iter(tops), None)
    found = []
    for label, scores in tops.items():
        tests: dict[str, Any] = dict.fromkeys(("welch_t", "welch_p", "student_t", "student_p"))
        if first is not None and label != first:
            for name, test in (("welch", welch), ("student", student)):
                one = test(scores, tops[first])
                tests |= {f"{name}_t": one.statistic, f"{name}_p": one.p_value}
        found.append(
            Reported(
                label=label,
                top=len(scores),
                mean=float(np.mean(scores)),
                interval=mean_interval(scores),
                against=first if label != first else None,
                **tests,
            )
        )
    return tuple(found)
